"""Does the pool help a user with 100 labelled images a class? Three students on CIFAR-10, over the wire.

`python -m benchmarks.quickstart --data ../shared/data --teacher ../shared/teachers/cifar10_resnet20.onnx --out F.json`

default: picks by Punnet's own choice. random: the same number of random picks, with the same quota a class.
labelled only: no pool at all; the service has no such job, so the engine's own stages run in this process.
All three train the same student for the same steps with the same seed. Test images measure only.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import answers
from benchmarks.conditions import conditions
from benchmarks.labelled_only import train_labelled_only
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine.imaging.images import decode
from punnet import Client
from punnet.job import JobResult
from punnet.v1 import job_pb2

POOL = "tiny-imagenet"
STUDENT, STEPS, BATCH, SEED = "cifar_resnet8", 1500, 64, 0
TEACHER_OUTPUT, STUDENT_OUTPUT = "logits", "logits"
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What all three students are trained with and measured on."""

    teacher: Path
    images: dict[str, list[bytes]]
    test_images: NDArray[np.uint8]
    test_labels: list[str]
    steps: int
    work: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One student: its file, its test accuracy and what it took."""

    name: str
    how: str
    accuracy: float
    picked: int
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quickstart", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the images, see its README.md")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".bench/quickstart"), help="server's data and downloads")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    started = time.monotonic()
    facts = conditions(seed=SEED, student=STUDENT, steps=options.steps, batch_size=BATCH)
    test_images, test_labels = read_test(options.data)
    task = Task(
        teacher=options.teacher, images=read_labelled(options.data), test_images=test_images, test_labels=test_labels,
        steps=options.steps, work=options.work,
    )  # fmt: skip

    with Client(data=options.work / "data") as client:
        if POOL not in [pool.name for pool in client.pools()]:
            client.create_pool(POOL, sorted((options.data / "pool").glob("*.tar"))).wait()
        default, report = run_arm(client, "default", task)
        random, _ = run_arm(client, "random", task, score="random", picks=default.picked)
    student = train_labelled_only(
        task.teacher, task.images, options.data / "pool", task.work / "labelled-only",
        student=STUDENT, steps=task.steps, batch_size=BATCH, seed=SEED,
    )  # fmt: skip
    found = answers(student.onnx, test_images, student.preprocessing, STUDENT_OUTPUT)
    labelled = Arm(
        name="labelled only", how="engine in this process", accuracy=share_right(found, test_labels, report), picked=0
    )
    found = answers(options.teacher, test_images, report["teacher"]["preprocessing"], TEACHER_OUTPUT)
    teacher = share_right(found, test_labels, report)
    result = summary(facts, teacher, [default, random, labelled], time.monotonic() - started)
    write_json(options.out, result)
    show(result, len(test_labels))


def run_arm(client: Client, name: str, task: Task, **selection: Any) -> tuple[Arm, dict[str, Any]]:
    """Compress over the wire, download, and measure the student on the test images."""
    job = client.compress(
        task.teacher, task.images, POOL, student=STUDENT, steps=task.steps, batch_size=BATCH, seed=SEED,
        targets=["cpu"], **selection,
    )  # fmt: skip
    done = job.wait()
    folder = task.work / name
    job.download(folder)
    report = json.loads((folder / "report.json").read_text())
    found = answers(folder / "student.onnx", task.test_images, report["student"]["preprocessing"], STUDENT_OUTPUT)
    arm = Arm(
        name=name, how="service", accuracy=share_right(found, task.test_labels, report),
        picked=report["selection"]["picked"], stages=stage_facts(done, report),
    )  # fmt: skip
    return arm, report


def stage_facts(done: JobResult, report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Seconds and memory of each stage when it ran, and whether this job reused that run."""
    facts = {}
    for stage in done.stages:
        ran = report["stages"].get(stage.name, {})
        facts[stage.name] = {
            "seconds": ran.get("seconds", stage.seconds),
            "peak_memory_bytes": ran.get("peak_memory_bytes", stage.peak_memory_bytes),
            "reused": stage.state == job_pb2.STAGE_STATE_REUSED,
        }
    return facts


def share_right(found: NDArray[np.int64], labels: list[str], report: dict[str, Any]) -> float:
    """Accuracy, the labels mapped to outputs as intake found them."""
    order = report["teacher"]["class_order"]
    return float(np.mean(found == np.array([order[label] for label in labels])))


def summary(facts: dict[str, Any], teacher: float, arms: list[Arm], seconds: float) -> dict[str, Any]:
    """The JSON that the benchmark writes."""
    default, random, labelled = arms
    second = random.stages
    return {
        "conditions": facts,
        "teacher": teacher,
        "student": default.accuracy,
        "student_random": random.accuracy,
        "student_labelled_only": labelled.accuracy,
        "seconds_by_stage": {name: s["seconds"] for name, s in default.stages.items()},
        "reused_by_second_job": [name for name, s in second.items() if s["reused"]],
        "seconds": seconds,
        "rows": [
            {"arm": a.name, "how": a.how, "accuracy": a.accuracy, "picked": a.picked, "stages": a.stages} for a in arms
        ],
        "bars": [
            bar("default above labelled only", default.accuracy - labelled.accuracy, 0.0, at_least=True),
            bar("default minus random, within noise", default.accuracy - random.accuracy, -0.015, at_least=True),
            bar("intake and scoring reused by the second job",
                float(all(second[name]["reused"] for name in ("intake", "scoring"))), 1.0, at_least=True),
            # A run over an earlier one's server would find stages finished.
            *([] if any(s["reused"] for s in default.stages.values())
              else [bar("minutes", seconds / 60, 15.0, at_least=False)]),
        ],
    }  # fmt: skip


def show(result: dict[str, Any], count: int) -> None:
    """Print the result."""
    rows = [["teacher", "", "", f"{result['teacher']:.1%}"]]
    rows += [[r["arm"], r["how"], f"{r['picked']:,}", f"{r['accuracy']:.1%}"] for r in result["rows"]]
    print_table(f"Accuracy on {count:,} test images", ["student", "trained by", "picked", "accuracy"], rows)
    stages = [
        [name, f"{s['seconds']:.1f}", f"{s['peak_memory_bytes'] / MIB:,.0f}",
         "reused" if name in result["reused_by_second_job"] else "ran"]
        for name, s in result["rows"][0]["stages"].items()
    ]  # fmt: skip
    print_table("Stages of the first job", ["stage", "seconds", "MiB", "in the second job"], stages)
    print_bars(result["bars"])


def read_labelled(data: Path) -> dict[str, list[bytes]]:
    """The images of labelled-100.txt by class."""
    wanted = set((data / "labelled-100.txt").read_text().split())
    images: dict[str, list[bytes]] = {}
    for name, content in read_members(data / "cifar10-train.tar.gz"):
        if name in wanted:
            images.setdefault(name.rpartition("/")[0].rpartition("/")[2], []).append(content)
    return dict(sorted(images.items()))


def read_test(data: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """Test images [N, 32, 32, 3] and their class names."""
    members = list(read_members(data / "cifar10-test.tar.gz"))
    images = np.stack([decode(content, 3) for _, content in members])
    return images, [name.rpartition("/")[0].rpartition("/")[2] for name, _ in members]


def read_members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a compressed tar's files."""
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes()), mode="r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read()


if __name__ == "__main__":
    main()
