"""Does scoring on a Ray cluster give the local runner's result, how fast, and what does a loss cost?

`python -m benchmarks.cluster --data ../shared/data --teacher ../shared/teachers/cifar10_resnet20.onnx --out F.json`

Clusters of this machine, of one and of two nodes of one CPU each (`ray.cluster_utils`), beside the local runner with
one thread. With two nodes, one of them is killed half-way, its workers with it; then the process that holds the runner
is killed half-way and started again. Scored in fp32, so that no timing decides what is scored. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions
from benchmarks.ray_cluster import set_key, started_cluster, wait_until
from benchmarks.scoring_subjects import Source, Subject, make, named
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine import ingest
from pu_engine.jsonform import to_json
from pu_engine.pools.pool import pool_folder
from pu_engine.pools.pool_types import IngestInputs
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256, read_manifest
from pu_engine.types import File, Folder
from server.runners.score_parts import PARTS, SETTLED

IMAGES, SHARDS = 40_000, 16
SPEED_UP = 1.6  # of two nodes over one
START_SECONDS = 300.0
PINNED = {"name": "fp32", "why": "the benchmark asks for it"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to score the pool."""

    name: str
    nodes: int  # 0: the local runner
    lost: str = ""  # node | front, half-way


ARMS = (
    Arm(name="local", nodes=0),
    Arm(name="one node", nodes=1),
    Arm(name="two nodes", nodes=2),
    Arm(name="a node killed", nodes=2, lost="node"),
    Arm(name="the front killed", nodes=2, lost="front"),
)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--shards", type=int, default=SHARDS)
    options = parser.parse_args()
    set_key()
    import ray

    where = conditions(images=options.images, shards=options.shards, ray=ray.__version__, threads=1, seed=0)
    with tempfile.TemporaryDirectory(prefix="punnet-cluster-") as scratch:
        work = Path(scratch)
        inputs = scoring_inputs(options.data, options.teacher, work, options.images, options.shards)
        rows = []
        for arm in ARMS:
            rows.append(measure(arm, inputs, work / arm.name.replace(" ", "-"), options.shards))
            print(rows[-1], flush=True)
    result = {"conditions": where, "rows": rows, **summary(rows)}
    show(rows)
    print_bars(result["bars"])
    write_json(options.out, result)


def scoring_inputs(data: Path, teacher: Path, work: Path, images: int, shards: int) -> dict[str, Any]:
    """The stage's inputs, with a pool of so many shards of one size."""
    source = Source(name=teacher.stem, model=teacher.name, dataset="cifar10-jpeg", share=1.0)
    subject = make(source, data=data, teachers=teacher.parent, work=work, images=images)
    pool = in_shards(subject, work, shards)
    return {
        "intake": to_json(subject.intake),
        "pool": to_json(pool),
        "images": {"tar": named(subject.labelled)},
        "provider": "cpu",
        "threads": 1,
    }


def in_shards(subject: Subject, work: Path, shards: int) -> Folder:
    """The subject's pool made again, in shards of another size."""
    tar, out = work / f"pool-{subject.images}" / "images.tar", work / "pool"
    out.mkdir()
    per_shard = -(-subject.images // shards)
    sent = File(path=str(tar), sha256=file_sha256(tar))
    ingest.run(IngestInputs(name="cluster", tars=(sent,), shard_images=per_shard), out, SilentProgress())
    return pool_folder(out)


def measure(arm: Arm, inputs: Mapping[str, Any], folder: Path, shards: int) -> dict[str, Any]:
    """One scoring by one arm."""
    workdir = prepared(folder, inputs)
    with contextlib.ExitStack() as held:
        cluster = held.enter_context(started_cluster(arm.nodes)) if arm.nodes else None
        environment = os.environ | ({"RAY_ADDRESS": cluster.address} if cluster else {})
        runner = "ray" if cluster else "local"
        began = time.monotonic()
        front = held.enter_context(started_front(runner, workdir, environment))
        lost_at = None
        if arm.lost:
            half = shards // 2
            wait_until(lambda: finished_parts(workdir) >= half or front.poll() is not None, START_SECONDS)
            lost_at = finished_parts(workdir)
        if arm.lost == "node" and cluster:
            cluster.kill_node(cluster.raylets[0])
        if arm.lost == "front":
            front.kill()
            front.wait()
            front = held.enter_context(started_front(runner, workdir, environment))
        answer, _ = front.communicate()
        total = time.monotonic() - began
    outcome = json.loads(answer)
    manifest = read_manifest(workdir / "out")
    return {
        "arm": arm.name,
        "nodes": arm.nodes,
        "seconds": outcome["wall_seconds"],  # of the process that came to the end, its start left out
        "total_seconds": total,  # with the starts of all fronts
        "parts_finished_at_loss": lost_at,
        "returncode": outcome["returncode"],
        "digest": manifest["digest"],
        "images": manifest["result"]["images"],
    }


def prepared(folder: Path, inputs: Mapping[str, Any]) -> Path:
    """A stage's folder whose precision is settled."""
    workdir = folder / "stage"
    for partial in (workdir / "out.partial", workdir / PARTS / SETTLED / "out.partial"):
        partial.mkdir(parents=True)
        (partial / "precision.timing.json").write_text(json.dumps(PINNED))
    (workdir / "inputs.json").write_text(json.dumps(inputs))
    return workdir


@contextlib.contextmanager
def started_front(runner: str, workdir: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The process that holds the runner; gone at the end, however that comes."""
    arguments = [sys.executable, "-m", "benchmarks.cluster_front", runner, str(workdir)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, env=dict(environment)) as process:
        try:
            yield process
        finally:
            process.kill()


def finished_parts(workdir: Path) -> int:
    """Shards whose part is finished."""
    return sum(1 for _ in (workdir / PARTS).glob("shard-*/out/manifest.json"))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Speed-up, equal digests, and the bars."""
    seconds = {row["arm"]: row["seconds"] for row in rows}
    equal = sum(row["digest"] == rows[0]["digest"] and row["returncode"] == 0 for row in rows)
    speed_up = seconds["one node"] / seconds["two nodes"]
    return {
        "speed_up": speed_up,
        "equal_digests": equal,
        "lost_results": len(rows) - equal,
        "bars": [
            bar("two nodes over one", speed_up, SPEED_UP, at_least=True),
            bar("arms with the local runner's digest", equal, len(rows), at_least=True),
        ],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """The table for people."""
    lines = [
        [row["arm"], f"{row['seconds']:.1f}", f"{row['total_seconds']:.1f}", f"{row['images']:,}", row["digest"][:12]]
        for row in rows
    ]
    print_table("Scoring", ["arm", "seconds", "with starts", "images", "digest"], lines)


if __name__ == "__main__":
    main()
