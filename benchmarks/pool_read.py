"""How fast is a pool made and read? `python -m benchmarks.pool_read --data ../shared/data --out F.json [--rounds N]`.

Ingest of the data's tars, then a scan of every shard and a read of a tenth of the images drawn at random, each image
compared with its sha256, from the page cache: the files have just been written. Opening the pool counts in both reads.
`scan_mib_s` counts the shards' bytes, `scan_images_mib_s` those of the images alone, without headers and padding;
`scan_mib_cpu_s` is a scan in CPU seconds, which others on the machine change little.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.conditions import conditions
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine import ingest
from pu_engine.pools.pool import open_pool, pool_folder
from pu_engine.pools.pool_types import IngestInputs, Pool
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256
from pu_engine.types import File, Folder

MIB = 2**20
SHARE = 0.1
SEED = 11
BARS = (("random_read_images_s", 4000.0), ("scan_mib_s", 500.0))


def make_pool(tars: list[Path], out: Path, threads: int) -> tuple[Pool, float]:
    """The pool, and the seconds that its ingest took."""
    files = tuple(File(path=str(tar), sha256=file_sha256(tar)) for tar in tars)
    started = time.perf_counter()
    pool = ingest.run(IngestInputs(name="read", tars=files, threads=threads), out, SilentProgress())
    return pool, time.perf_counter() - started


def scan_bytes(folder: Folder) -> int:
    """Read every image in order; bytes of the images, without the tars' headers and padding."""
    reader = open_pool(folder)
    return sum(len(data) for shard in reader.pool.shards for _, _, data in reader.scan(shard.name))


def random_read(folder: Folder, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> int:
    """Read the images of these rows; how many there were."""
    return sum(1 for _ in open_pool(folder).read(rows))


def rates(work: Callable[[], int], rounds: int, clock: Callable[[], float] = time.perf_counter) -> list[float]:
    """What one call gives, a second of the clock, of several calls."""
    found = []
    for _ in range(rounds):
        started = clock()
        amount = work()
        found.append(amount / (clock() - started))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pool_read", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    where = conditions(seed=SEED, rounds=options.rounds, threads=options.threads)
    with tempfile.TemporaryDirectory(prefix="punnet-") as scratch:
        pool, seconds = make_pool(sorted((options.data / "pool").glob("*.tar")), Path(scratch), options.threads)
        folder = pool_folder(Path(scratch))
        rows = np.random.default_rng(SEED).permutation(pool.images)[: int(SHARE * pool.images)]
        image_mib = scan_bytes(folder) / MIB
        rounds_a_second = rates(lambda: bool(scan_bytes(folder)), options.rounds)
        scans = [pool.size / MIB * rate for rate in rounds_a_second]
        image_scans = [image_mib * rate for rate in rounds_a_second]
        cpu_scans = [
            pool.size / MIB * rate
            for rate in rates(lambda: bool(scan_bytes(folder)), options.rounds, time.process_time)
        ]
        reads = rates(lambda: random_read(folder, rows), options.rounds)
    result = {
        "ingest_images_s": (pool.images + pool.bad_images) / seconds,
        "scan_mib_s": statistics.median(scans),
        "scan_images_mib_s": statistics.median(image_scans),
        "scan_mib_cpu_s": statistics.median(cpu_scans),
        "random_read_images_s": statistics.median(reads),
    }
    spreads = {
        "ingest_images_s": "one run",
        "scan_mib_s": f"{min(scans):,.0f} to {max(scans):,.0f}",
        "scan_images_mib_s": f"{min(image_scans):,.0f} to {max(image_scans):,.0f}",
        "scan_mib_cpu_s": f"{min(cpu_scans):,.0f} to {max(cpu_scans):,.0f}",
        "random_read_images_s": f"{min(reads):,.0f} to {max(reads):,.0f}",
    }
    rows_out = [{"name": name, "value": value, "spread": spreads[name]} for name, value in result.items()]
    bars = [bar(name, result[name], bound, at_least=True) for name, bound in BARS]
    title = f"A pool of {pool.images:,} images in {len(pool.shards)} shards of {pool.size / MIB:,.0f} MiB together"
    print_table(title, ["figure", "median", "spread"], [[n, f"{v:,.0f}", spreads[n]] for n, v in result.items()])
    print_bars(bars)
    content = {"conditions": where, "rows": rows_out, **result, "pool_images": pool.images, "bars": bars}
    write_json(options.out, content)


if __name__ == "__main__":
    main()
