"""Does scoring's cost grow with the pool alone, and does a pool of a million images fit? One teacher, ResNet-20.

`python -m benchmarks.scale --data ../shared/data --teachers ../shared/teachers --out F.json`

Scoring and selection of growing pools, and a pool of 1,000,000 entries made by repeating shards: its selection of the
best 100,000 as a process of its own, and a read of the picked images. Scores of the repeated shards are repeated too:
they are the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.conditions import conditions
from benchmarks.scoring_arms import Measured, alone, timed
from benchmarks.scoring_subjects import SOURCES, Subject, make, named
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine.jsonform import from_json, to_json
from pu_engine.peak_memory import peak_bytes
from pu_engine.pools.pool import open_pool, pool_folder
from pu_engine.pools.pool_types import Pool, Shard
from pu_engine.results import build_manifest, load, read_manifest
from pu_engine.scores.score_types import Scores
from pu_engine.types import Folder

SIZES = (10_000, 20_000, 40_000)
ENTRIES, PICKED = 1_000_000, 100_000
THREADS = 2
MIB = 2**20
PEAK_MIB = 1536.0
MOST_UNEVEN = 1.15  # dearest to cheapest image of the sizes


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--threads", type=int, default=THREADS)
    options = parser.parse_args()
    where = conditions(sizes=options.sizes, entries=options.entries, threads=options.threads, seed=0)
    with tempfile.TemporaryDirectory(prefix="punnet-scale-") as scratch:
        work, rows = Path(scratch), []
        for size in options.sizes:
            subject = make(SOURCES[0], data=options.data, teachers=options.teachers, work=work, images=size)
            inputs = scoring_inputs(subject, options.threads)
            scoring, scored = stage("scoring", inputs, work / f"scoring-{size}")
            _, selected = stage("selection", selection_inputs(inputs, scoring, None), work / f"selection-{size}")
            rows.append({"images": size, "scoring": scored, "selection": selected})
            print(rows[-1], flush=True)
        million = measure_million(inputs, scoring, work / "million", options.entries)
    result = {"conditions": where, "rows": rows, "million": million, **summary(rows, million)}
    show(rows, million)
    print_bars(result["bars"])
    write_json(options.out, result)


def scoring_inputs(subject: Subject, threads: int) -> dict[str, Any]:
    """The inputs of the stage, fp32 for what is measured to be one thing at all sizes."""
    return {
        "intake": to_json(subject.intake),
        "pool": to_json(subject.pool),
        "images": {"tar": named(subject.labelled)},
        "provider": "cpu",
        "threads": threads,
    }


def selection_inputs(inputs: Mapping[str, Any], scoring: Path, count: int | None) -> dict[str, Any]:
    """The inputs of a selection over a finished scoring, with a training that picks a fifth by default."""
    return {
        "intake": inputs["intake"],
        "pool": inputs["pool"],
        "scoring": {"path": str(scoring), "sha256": read_manifest(scoring)["digest"]},
        "selection": {} if count is None else {"count": count},
        "seed": 0,
        "threads": 1,
    }


def stage(name: str, inputs: Mapping[str, Any], workdir: Path) -> tuple[Path, dict[str, float]]:
    """A stage as the server runs it, without its confinement; returns its finished folder and what it cost."""
    workdir.mkdir()
    if name == "scoring":
        (workdir / "out.partial").mkdir()
        fixed = {"name": "fp32", "why": "the benchmark asks for it"}
        (workdir / "out.partial" / "precision.timing.json").write_text(json.dumps(fixed))
    (workdir / "inputs.json").write_text(json.dumps(inputs))
    with timed() as clock:
        subprocess.run([sys.executable, "-I", "-m", "pu_engine.stage", name, str(workdir)], check=True)
    peak = read_manifest(workdir / "out")["peak_memory_bytes"] / MIB
    return workdir / "out", {"cpu_seconds": clock.cpu, "wall_seconds": clock.wall, "peak_mib": peak}


def measure_million(inputs: Mapping[str, Any], scoring: Path, work: Path, entries: int) -> dict[str, Any]:
    """Selection from, and a read of, a pool of repeated shards."""
    work.mkdir()
    pool, scores = repeat(Folder(**inputs["pool"]), scoring, work, entries)
    wider = {**inputs, "pool": to_json(pool)}
    images = load(Scores, scores).images
    picks = min(PICKED, images // 10)
    selection, cost = stage("selection", selection_inputs(wider, scores, picks), work / "selection")
    rows = np.flatnonzero(pq.read_table(selection / "selection.parquet", columns=["picked"])["picked"].to_numpy())
    rows_file = work / "rows.npy"
    np.save(rows_file, rows)
    opened, read = alone(open_arm, pool), alone(read_arm, pool, rows_file)
    return {
        "entries": images,
        "picked": len(rows),
        "selection": cost,
        "open_seconds": opened.wall_seconds,
        "read_images_a_second": read.images / read.wall_seconds,
        "read_peak_mib": read.peak_bytes / MIB,
    }


def open_arm(pool: Folder) -> Measured:
    """Opening a pool: all indexes are read and checked."""
    with timed() as clock:
        reader = open_pool(pool)
    count = reader.pool.images
    return Measured(images=count, cpu_seconds=clock.cpu, wall_seconds=clock.wall, peak_bytes=peak_bytes())


def read_arm(pool: Folder, rows: Path) -> Measured:
    """A read of the picked rows, each image compared with its sha256; the pool is open."""
    reader, wanted = open_pool(pool), np.load(rows)
    with timed() as clock:
        count = sum(1 for _ in reader.read(wanted))
    return Measured(images=count, cpu_seconds=clock.cpu, wall_seconds=clock.wall, peak_bytes=peak_bytes())


def repeat(pool: Folder, scoring: Path, work: Path, entries: int) -> tuple[Folder, Path]:
    """A pool and its scores in which every shard stands as often as it takes to reach so many entries."""
    source, folder, scores_folder = Path(pool.path), work / "pool", work / "scores"
    folder.mkdir()
    scores_folder.mkdir()
    whole = from_json(Pool, json.loads((source / "pool.json").read_text()))
    scores, images, size = load(Scores, scoring), 0, 0
    shards: list[Shard] = []
    keys: list[str] = []
    while images < entries:
        number = len(shards) % len(whole.shards)
        shard, name = whole.shards[number], f"shard-{len(shards):05d}"
        for suffix in ("tar", "arrow"):
            os.link(source / f"{shard.name}.{suffix}", folder / f"{name}.{suffix}")
        for kind in ("logits", "features"):
            os.link(scoring / f"{shard.name}.{kind}.npy", scores_folder / f"{name}.{kind}.npy")
        shards.append(replace(shard, name=name))
        keys.append(scores.shard_keys[number])
        images, size = images + shard.entries, size + shard.size
    for file in scoring.glob("labelled.*.npy"):
        shutil.copyfile(file, scores_folder / file.name)
    wider = replace(whole, images=images, size=size, shards=tuple(shards))
    (folder / "pool.json").write_text(json.dumps(to_json(wider)))
    repeated = replace(scores, images=images, shards=tuple(s.name for s in shards), shard_keys=tuple(keys))
    (scores_folder / "manifest.json").write_text(json.dumps(build_manifest(scores_folder, repeated, {})))
    return pool_folder(folder), scores_folder


def summary(rows: list[dict[str, Any]], million: Mapping[str, Any]) -> dict[str, Any]:
    """The constants, and the bars."""
    costs = [1000 * row["scoring"]["cpu_seconds"] / row["images"] for row in rows]
    peak = max(million["selection"]["peak_mib"], million["read_peak_mib"], *(r["scoring"]["peak_mib"] for r in rows))
    return {
        "scoring_cpu_ms_an_image": costs,
        "bars": [
            bar("dearest to cheapest image of the sizes", max(costs) / min(costs), MOST_UNEVEN, at_least=False),
            bar("peak MiB of scoring, selection and reading", peak, PEAK_MIB, at_least=False),
        ],
    }


def show(rows: list[dict[str, Any]], million: Mapping[str, Any]) -> None:
    """The tables for people."""
    lines = [
        [
            f"{r['images']:,}",
            *(f"{r[s][k]:,.1f}" for s in ("scoring", "selection") for k in ("cpu_seconds", "peak_mib")),
        ]
        for r in rows
    ]
    columns = ["images", "scoring CPU s", "MiB", "selection CPU s", "MiB"]
    print_table("Growth", columns, lines)
    facts = [[name, f"{million[name]:,.1f}"] for name in million if name != "selection"]
    facts += [[f"selection {name}", f"{value:,.1f}"] for name, value in million["selection"].items()]
    print_table("The large pool", ["", ""], facts)


if __name__ == "__main__":
    start = time.monotonic()
    main()
    print(f"{time.monotonic() - start:.0f} s")
