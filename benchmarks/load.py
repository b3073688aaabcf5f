"""Does one small server hold up under many users? `python -m benchmarks.load --out F.json [--seconds 300]`.

200 watchers, 4 uploads of 256 MiB at once (again and again), 50 queued jobs (one that ends is followed by another) and
100 small calls a second, of one tenant with a token whose limits are raised to allow it. The clients are processes of
their own on the same machine, and take part of its cores. The uploads' share is their rate over what storing such a
file costs without any server (sha256, CRC32C, write, fsync), measured before the load.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks.conditions import conditions
from benchmarks.load_clients import REFUSED, Calls, Load
from benchmarks.server_process import ServerProcess, resident_mib
from benchmarks.table import bar, print_bars, print_table, write_json
from benchmarks.wire import MIB, numbered_file, time_sink, upload_messages
from punnet.v1 import blob_pb2_grpc, catalogue_pb2, catalogue_pb2_grpc
from tests.conftest import SIDE, write_tar

TENANT = "load"
POOL_IMAGES = 200  # an ingest of a second or two: jobs end and follow each other all the time
SAMPLE_SECONDS = 1.0
WARM_SHARE = 0.1  # of the time, after which memory is looked at
END_SECONDS = 120.0
SINKS = 3
FIGURES = (
    *("calls", "success_share", "unary_p50_ms", "unary_p99_ms", "upload_mib_s", "sink_mib_s", "upload_share"),
    *("events", "events_lost", "jobs_ended", "rss_start_mib", "rss_end_mib"),
)
RAISED = {
    "--calls-a-minute": "60000",
    "--transfers-a-minute": "60000",
    "--open-calls": "400",
    "--queued-jobs": "100",
    "--tenant-storage-gib": "200",
}


def main() -> int:
    """Measure, print the table, write the JSON."""
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="pnl-", dir="/tmp"))  # a socket's path is short
    where = conditions(**{name: value for name, value in vars(options).items() if name != "out"})
    try:
        result = measure(folder, options)
    finally:
        shutil.rmtree(folder)
    result = {"conditions": where, **result}
    print_table("Load", ["figure", "value"], [[name, f"{result[name]:.4g}"] for name in FIGURES])
    print_bars(result["bars"])
    write_json(options.out, result)
    return 0 if all(b["holds"] for b in result["bars"]) else 1


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One server under the load; the figures and bars."""
    data = folder / "data"
    token = create_token(data)
    limits = tuple(part for option in RAISED.items() for part in option)
    server = ServerProcess(folder=folder, data=data, options=("--threads", "1", *limits))
    startup = server.start()
    try:
        sink = sink_mib_s(folder, options.upload_mib)
        load = Load(
            address=server.address, token=token, data=str(data), tar_sha256=bring_pool(server.address, token, folder),
            watchers=options.watchers, jobs=options.jobs, uploads=options.uploads, upload_mib=options.upload_mib,
        )  # fmt: skip
        calls = Calls(load)
        with client("watchers", load) as watching, client("uploads", load) as uploading:
            memory = asyncio.run(_call_and_sample(calls, server.pid, options))
            watched, uploaded = _ended(watching), _ended(uploading)
    finally:
        status = server.stop()
    if status:
        raise RuntimeError(f"the server ended with status {status}")
    return {"startup_s": startup, **report(calls, watched, uploaded, memory, sink)}


def create_token(data: Path) -> str:
    """A tenant's token; the server has accounts from then on."""
    scopes = ("--scope", "submit", "--scope", "read")
    arguments = ("token", "create", "--tenant", TENANT, "--days", "1", *scopes, "--data", str(data), "--json")
    command = [sys.executable, "-I", "-m", "server.accounts_command", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return str(json.loads(done.stdout)["token"])


def sink_mib_s(folder: Path, mib: int) -> float:
    """MiB a second of storing a file without a server, the median of some."""
    rates = []
    for number in range(SINKS):
        numbered_file(folder / "source", mib, number)
        rates.append(mib / time_sink(folder / "source", folder / "target"))
    (folder / "source").unlink()
    return statistics.median(rates)


def bring_pool(address: str, token: str, folder: Path) -> str:
    """Upload the images of which each job makes a pool; their sha256.

    Students are asked for once: a child measures them the first time, for many seconds, and the answer is kept.
    """
    tar = folder / "pool.tar"
    write_tar(tar, np.random.default_rng(0).integers(0, 256, (POOL_IMAGES, SIDE, SIDE, 3), np.uint8))
    sha256 = hashlib.sha256(tar.read_bytes()).hexdigest()
    with grpc.insecure_channel(address) as channel:
        metadata = (("authorization", f"Bearer {token}"),)
        blob_pb2_grpc.BlobServiceStub(channel).UploadBlob(upload_messages(tar, sha256), metadata=metadata)
        students = catalogue_pb2.ListStudentsRequest()
        catalogue_pb2_grpc.CatalogueServiceStub(channel).ListStudents(students, metadata=metadata)
    return sha256


@contextmanager
def client(kind: str, load: Load) -> Iterator[subprocess.Popen[str]]:
    """A process of `benchmarks.load_clients` whose load is there."""
    command = [sys.executable, "-m", "benchmarks.load_clients", kind, json.dumps(asdict(load))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if process.stdout is None or process.stdout.readline().strip() != "loaded":
            raise RuntimeError(f"the {kind} did not start")
        yield process
    finally:
        process.kill()
        process.wait()


def _ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a client counted, once its standard input has ended."""
    output, _ = process.communicate(timeout=END_SECONDS)
    counted: dict[str, Any] = json.loads(output)
    return counted


async def _call_and_sample(calls: Calls, pid: int, options: argparse.Namespace) -> list[float]:
    """Make the calls; the server's resident memory in MiB, a figure a second."""
    making = asyncio.create_task(calls.make(options.calls, options.seconds))
    samples = []
    while not making.done():
        samples.append(resident_mib(pid))
        await asyncio.wait({making}, timeout=SAMPLE_SECONDS)
    await making
    return samples


def report(
    calls: Calls, watched: Mapping[str, Any], uploaded: Mapping[str, Any], memory: list[float], sink: float
) -> dict[str, Any]:
    """The figures, and which bars they hold."""
    outcomes = calls.outcomes + Counter(watched["outcomes"]) + Counter(uploaded["outcomes"])
    total = sum(outcomes.values())
    tenth = max(1, int(len(memory) * WARM_SHARE))
    start, end = statistics.median(memory[tenth : 2 * tenth] or memory), statistics.median(memory[-tenth:])
    figures = {
        "calls": total,
        "success_share": outcomes["OK"] / total,
        "other_failures": total - outcomes["OK"] - outcomes[REFUSED],
        "unary_p50_ms": statistics.median(calls.milliseconds),
        "unary_p99_ms": statistics.quantiles(calls.milliseconds, n=100)[98],
        "upload_mib_s": uploaded["bytes"] / MIB / uploaded["seconds"],
        "sink_mib_s": sink,
        "upload_share": uploaded["bytes"] / MIB / uploaded["seconds"] / sink,
        "events": watched["events"],
        "events_lost": watched["lost"],
        "jobs_ended": watched["ended"],
        "rss_start_mib": start,
        "rss_end_mib": end,
    }
    bars = [
        bar("success_share", figures["success_share"], 0.999, at_least=True),
        bar("other_failures", figures["other_failures"], 0, at_least=False),
        bar("events_lost", watched["lost"], 0, at_least=False),
        bar("rss_growth", end / start, 1.1, at_least=False),
    ]
    by_part = {
        "unary": calls.outcomes,
        "watchers and submissions": watched["outcomes"],
        "uploads": uploaded["outcomes"],
    }
    return {**figures, "outcomes": by_part, "rss_mib": [round(value, 1) for value in memory], "bars": bars}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--watchers", type=int, default=200)
    parser.add_argument("--uploads", type=int, default=4)
    parser.add_argument("--upload-mib", type=int, default=256)
    parser.add_argument("--jobs", type=int, default=50, help="that wait at once")
    parser.add_argument("--calls", type=int, default=100, help="a second")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
