"""Is scoring as fast as the processor allows? The pipeline beside eager PyTorch, onnxruntime and decoding alone.

`python -m benchmarks.scoring --data ../shared/data --teachers ../shared/teachers --out F.json`

All arms see the same images and the same views, image and mirror, run in as many threads, and are compared by images
a CPU second, because other work may share the cores; wall-clock rates stand beside. The bound of the pipeline is what
decoding alone and onnxruntime alone cost an image together: nothing else is allowed for.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions
from benchmarks.scoring_arms import (
    Measured,
    alone,
    decode_bare,
    int8_trial,
    ort_bare,
    pipeline,
    torch_eager,
    torch_twin,
)
from benchmarks.scoring_subjects import SOURCES, Subject, make
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine.scores.score_types import FP32, INT8

IMAGES, ROUNDS, THREADS = 8000, 3, 2
CPU_INFO = Path("/proc/cpuinfo")
MIB = 2**20
PEAK_MIB = 1536.0
OF_BOUND = 0.9
INT8_OVER_EAGER = {"resnet18": 3.0}
OVER_EAGER = {"resnet20": 2.0, "resnet56": 2.0, "resnet18": 1.2}


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--only", nargs="*", default=[], help="parts of subjects' names")
    parser.add_argument("--work", type=Path, help="keeps teachers and pools for the next run")
    options = parser.parse_args()
    where = conditions(images=options.images, rounds=options.rounds, threads=options.threads, seed=0)
    with tempfile.TemporaryDirectory(prefix="punnet-scoring-") as scratch:
        work = options.work or Path(scratch)
        rows = []
        for source in SOURCES:
            if options.only and not any(part in source.name for part in options.only):
                continue
            subject = make(
                source, data=options.data, teachers=options.teachers, work=work.resolve(), images=options.images
            )
            row = measure(subject, options.rounds, options.threads)
            print({name: round(value, 1) for name, value in row["per_cpu_second"].items()}, flush=True)
            rows.append(row)
    result: dict[str, Any] = {"conditions": where, "rows": rows, "bars": bars_of(rows)}
    show(rows)
    print_bars(result["bars"])
    write_json(options.out, result)


def measure(subject: Subject, rounds: int, threads: int) -> dict[str, Any]:
    """All arms in turns, so that what else runs on the machine meets each of them."""
    trial = alone(int8_trial, subject, threads)
    arms: dict[str, Callable[[Subject, int], Measured]] = {
        "torch_eager": torch_eager,
        "torch_twin": torch_twin,
        "decode_bare": decode_bare,
        "ort_bare": ort_bare,
        "pipeline_fp32": partial(pipeline, precision=FP32),
        "pipeline_int8": partial(pipeline, precision=INT8),
    }
    runs: dict[str, list[Measured]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            runs[name].append(alone(arm, subject, threads))
    return row_of(subject, runs, trial)


def row_of(subject: Subject, runs: Mapping[str, list[Measured]], trial: Measured) -> dict[str, Any]:
    """The best of the rounds, for what else runs on the machine only ever adds, and what follows from it."""
    cost = {name: min(r.cpu_seconds / r.images for r in found) for name, found in runs.items()}
    bound = cost["decode_bare"] + cost["ort_bare"]
    return {
        "subject": subject.name,
        "images": subject.images,
        "per_cpu_second": {name: 1 / seconds for name, seconds in cost.items()},
        "per_second": {name: max(r.images / r.wall_seconds for r in rs) for name, rs in runs.items()},
        "of_bound": bound / cost["pipeline_fp32"],
        "over_eager": {name: cost["torch_eager"] / cost[name] for name in cost if "pipeline" in name},
        "peak_mib": {name: max(r.peak_bytes for r in found) / MIB for name, found in runs.items()},
        "int8_trial": asdict(trial),
        "runs": {name: [asdict(r) for r in found] for name, found in runs.items()},
    }


def bars_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bars asked of each subject."""
    bars = []
    for row in rows:
        name = row["subject"]
        bars.append(bar(f"{name}: pipeline_fp32 of its bound", row["of_bound"], OF_BOUND, at_least=True))
        if name in OVER_EAGER:
            ratio = row["over_eager"]["pipeline_fp32"]
            bars.append(bar(f"{name}: pipeline_fp32 over torch_eager", ratio, OVER_EAGER[name], at_least=True))
        if name in INT8_OVER_EAGER and has_vnni():
            ratio = row["over_eager"]["pipeline_int8"]
            bars.append(bar(f"{name}: pipeline_int8 over torch_eager", ratio, INT8_OVER_EAGER[name], at_least=True))
        peak = max(row["peak_mib"][arm] for arm in ("pipeline_fp32", "pipeline_int8"))
        bars.append(bar(f"{name}: peak MiB of the pipeline", peak, PEAK_MIB, at_least=False))
    return bars


def has_vnni() -> bool:
    """Whether the processor multiplies bytes at once."""
    return CPU_INFO.exists() and any(flag in CPU_INFO.read_text() for flag in ("avx512_vnni", "avx_vnni"))


def show(rows: list[dict[str, Any]]) -> None:
    """The table for people."""
    lines = [
        [row["subject"], arm, f"{row['per_cpu_second'][arm]:,.0f}", f"{row['per_second'][arm]:,.0f}",
         f"{row['peak_mib'][arm]:,.0f}"]
        for row in rows
        for arm in row["per_cpu_second"]
    ]  # fmt: skip
    trials = [
        [row["subject"], f"{facts['images']}", f"{facts['speedup']:.2f}", f"{facts['agreement']:.3f}",
         f"{facts['jaccard']:.3f}", facts["chosen"]]
        for row in rows
        for facts in [row["int8_trial"]["facts"]]
    ]  # fmt: skip
    print_table("The int8 trial", ["teacher", "images", "speedup", "agreement", "Jaccard", "chosen"], trials)
    print_table("Images, each with its mirror", ["teacher", "arm", "a CPU second", "a second", "peak MiB"], lines)


if __name__ == "__main__":
    main()
