"""Does Punnet turn a teacher into a small student that answers alike? Two compressions of real digits, in minutes.

`python -m benchmarks.demo --out demo-out`; nothing is downloaded. Everything it makes stays in the folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks import demo_data
from benchmarks.accuracy import answers
from benchmarks.conditions import conditions
from benchmarks.demo_data import DemoData
from benchmarks.table import print_table, write_json
from punnet import Client
from punnet.v1 import job_pb2

POOL = "digits-and-distractors"
STUDENT = "cifar_resnet8"
STEPS, BATCH, PICKS = 240, 64, 1000
SEED = 0
TEACHER_OUTPUT, STUDENT_OUTPUT = "scores", "logits"

say = Console(highlight=False, soft_wrap=True).print  # paths stay whole, to be copied


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One compression, measured on digits that it never saw."""

    accuracy: float
    agreement: float
    precision: float  # share of digits among the picked images
    parameters: int
    file_bytes: int
    milliseconds: float | None
    report: Mapping[str, Any]


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"))
    out = parser.parse_args().out
    started = time.monotonic()
    # What an earlier demo left would only be reused; the server's data stays, its caches are part of the story.
    for name in ("input", "default", "random"):
        shutil.rmtree(out / name, ignore_errors=True)

    say("[bold]1. A user's situation.[/] Training a teacher on 898 of scikit-learn's handwritten digits ...")
    data = demo_data.make(out / "input", SEED)
    known = sum(what.startswith("digit") for what in data.truth.values())
    say(f"   {data.teacher}: an ordinary ONNX file; nobody tells Punnet how it wants its images.")
    say(f"   {data.labelled}/: 20 labelled images of each digit.")
    say(f"   {data.pool}: {len(data.truth):,} unlabelled images; {known:,} are digits, the others are crops of")
    say("   photographs and printed letters. Punnet is not told which.\n")

    with Client(data=out / "data") as client:
        say(f"[bold]2. A private server[/] runs on {client.address}; its data is in {out / 'data'}.")
        make_pool(client, data)
        say("\n[bold]3. Compressing,[/] picking from the pool by the score that Punnet chooses ...")
        default = compress(client, data, out / "default")
        say(
            "\n[bold]4. The same again with random picks,[/] to see what the picking is worth. Stages with equal inputs"
        )
        say("   are reused: nothing is scored twice ...")
        random = compress(client, data, out / "random", score="random")
    show(data, default, random, out, time.monotonic() - started)


def make_pool(client: Client, data: DemoData) -> None:
    """Ingest the pool, unless an earlier demo did."""
    if POOL in [pool.name for pool in client.pools()]:
        say(f"   The pool {POOL} is there from an earlier demo.")
        return
    client.create_pool(POOL, [data.pool]).wait()
    pool = client.pool(POOL)
    say(f"   The pool {POOL} holds {pool.images:,} images; {pool.bad_images} could not be decoded.")


def compress(client: Client, data: DemoData, folder: Path, **options: Any) -> Measured:
    """One compression over the wire, downloaded and measured."""
    job = client.compress(
        data.teacher, data.labelled, POOL, student=STUDENT, steps=STEPS, batch_size=BATCH, picks=PICKS, seed=SEED,
        **options,
    )  # fmt: skip
    job.wait(stage_printer())
    job.download(folder)
    return measure(data, folder)


def stage_printer() -> Callable[[job_pb2.StageStatus], None]:
    """A callback that prints each stage once, when it is finished."""
    printed: set[str] = set()

    def show_stage(stage: job_pb2.StageStatus) -> None:
        if stage.name in printed or stage.state not in (job_pb2.STAGE_STATE_SUCCEEDED, job_pb2.STAGE_STATE_REUSED):
            return
        printed.add(stage.name)
        reused = stage.state == job_pb2.STAGE_STATE_REUSED
        took = "reused" if reused else f"{stage.seconds:6.1f} s, {stage.peak_memory_bytes / 2**20:5.0f} MiB"
        say(f"   {stage.name:<13} {took}")

    return show_stage


def measure(data: DemoData, folder: Path) -> Measured:
    """The downloaded student on the test digits, and its picks against the truth that Punnet never saw."""
    report = json.loads((folder / "report.json").read_text())
    student, teacher = report["student"], report["teacher"]
    given = answers(folder / "student.onnx", data.test_images, student["preprocessing"], STUDENT_OUTPUT)
    wanted = answers(data.teacher, data.test_images, teacher["preprocessing"], TEACHER_OUTPUT)
    table = pq.read_table(folder / "selection.parquet", columns=["key", "picked"])
    picked = [key for key, taken in zip(*table.to_pydict().values(), strict=True) if taken]
    return Measured(
        accuracy=float((given == data.test_labels).mean()),
        agreement=float((given == wanted).mean()),
        precision=float(np.mean([data.truth[f"{key}.png"].startswith("digit") for key in picked])),
        parameters=student["parameters"],
        file_bytes=(folder / "student.onnx").stat().st_size,
        milliseconds=milliseconds(report, "fp32"),
        report=report,
    )


def milliseconds(report: Mapping[str, Any], subject: str) -> float | None:
    """The median for one image on one thread; None where a model takes no single image."""
    rows = [r for r in report["latencies"] if (r["subject"], r["batch"], r["threads"]) == (subject, 1, 1)]
    return float(rows[0]["p50_ms"]) if rows else None


def show(data: DemoData, default: Measured, random: Measured, out: Path, seconds: float) -> None:
    """Print the comparison and keep it as table.json."""
    teacher = default.report["teacher"]
    wanted = answers(data.teacher, data.test_images, teacher["preprocessing"], TEACHER_OUTPUT)
    teacher_accuracy = float((wanted == data.test_labels).mean())
    share = sum(what.startswith("digit") for what in data.truth.values()) / len(data.truth)
    rows = [
        {
            "model": "teacher", "accuracy": teacher_accuracy, "agreement": 1.0, "precision": None,
            "parameters": teacher["parameters"], "bytes": data.teacher.stat().st_size,
            "milliseconds": milliseconds(default.report, "teacher"),
        },
        *(
            {
                "model": name, "accuracy": m.accuracy, "agreement": m.agreement, "precision": m.precision,
                "parameters": m.parameters, "bytes": m.file_bytes, "milliseconds": m.milliseconds,
            }
            for name, m in (("student", default), ("random picks", random))
        ),
    ]  # fmt: skip
    print_table(
        f"{len(data.test_labels)} digits that neither teacher nor student trained on",
        ["", "accuracy", "agrees", "digits", "weights", "file", "1 image"],
        [
            [
                str(r["model"]), f"{r['accuracy']:.1%}", f"{r['agreement']:.1%}",
                "" if r["precision"] is None else f"{r['precision']:.1%}", f"{r['parameters']:,}",
                f"{r['bytes'] / 1024:,.0f} KiB", "" if r["milliseconds"] is None else f"{r['milliseconds']:.3f} ms",
            ]
            for r in rows
        ],
    )  # fmt: skip
    say("   agrees: with the teacher. digits: their share among the picked images. 1 image: on one thread of this CPU.")
    say("   random picks: the same student from picks at random, with the same quota a class.")
    say(f"{share:.1%} of the pool are digits. The score was [bold]{default.report['selection']['score']}[/]:")
    say(f"   {default.report['selection']['why']}")
    write_json(
        out / "table.json",
        {
            "conditions": conditions(seed=SEED, student=STUDENT, steps=STEPS, batch_size=BATCH, picks=PICKS),
            "rows": rows,
            "pool_share": share,
            "seconds": seconds,
        },
    )
    say(f"\nDone in {seconds:.0f} s. What to look at:")
    say(f"   {out / 'default' / 'report.html'}   the report: open it in a browser")
    say(f"   {out / 'default' / 'student.onnx'}  the student, ready for ONNX Runtime")
    for variant in default.report["variants"]:
        if variant["name"] != "fp32" and not variant["withheld"]:
            note = ", recommended for this CPU" if variant["recommended"] else ""
            say(f"   {out / 'default' / variant['path']}  the same as {variant['name']}{note}")
    say(f"   {out / 'table.json'}            this table as data")
    say(f"   punnet jobs --data {out / 'data'}   both jobs, from the command line")


if __name__ == "__main__":
    main()
