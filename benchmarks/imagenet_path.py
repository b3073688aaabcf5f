"""Does the whole job work at ImageNet's size: 224 pixels, 1,000 classes of which few are labelled, in bounded memory?

`python -m benchmarks.imagenet_path --data ../shared/data
    --teacher ../shared/teachers/imagenet_mobilenet_v1_025_keras.onnx --out F.json`

A MobileNet of 1,000 classes at its own size, through a real server and client. Labelled: `--classes` classes of the
ImageNet sample. It has one image a class, so five crops stand beside each: they are synthetic, and a held-out crop
shows what a training crop shows; figures on them say little of new photographs. Pool: Tiny-ImageNet's 64-pixel images,
which the job enlarges to the teacher's size. The honest figure is the student's agreement with its teacher on pool
images that it never saw. `--images`, `--steps` and `--classes` make a small run of it.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.conditions import conditions
from benchmarks.scoring_subjects import pool_members
from benchmarks.table import bar, print_bars, print_table, write_json
from punnet import Client

SEED, BATCH = 0, 32
STUDENT = "mobilenetv4_conv_small_050"
CROP_SHARE, JPEG_QUALITY = 0.85, 95
MIB = 2**20
STAGE_MIB = 2048  # what a stage may hold: a training set is read from its files, not into memory
CHANCE = 1 / 1000


def main() -> int:
    """Run the job; 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.imagenet_path", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the images, see its README.md")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".bench/imagenet-path"), help="server's data and downloads")
    parser.add_argument("--student", default=STUDENT)
    parser.add_argument("--classes", type=int, default=40, help="labelled ones")
    parser.add_argument("--images", type=int, default=8000, help="of the pool")
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    started = time.monotonic()
    facts = conditions(
        seed=SEED, student=options.student, steps=options.steps, batch_size=BATCH, pool_images=options.images,
        labelled_classes=options.classes, labelled="one photograph a class and five crops of it",
    )  # fmt: skip
    images = labelled(options.data / "imagenet-sample", options.classes)
    options.work.mkdir(parents=True, exist_ok=True)
    pool = f"tiny-{options.images}"
    with Client(data=options.work / "data") as client:
        if pool not in [found.name for found in client.pools()]:
            tar = options.work / f"{pool}.tar"
            write_pool(options.data / "pool", tar, options.images)
            client.create_pool(pool, [tar]).wait()
        job = client.compress(
            options.teacher, images, pool, student=options.student, steps=options.steps, batch_size=BATCH, seed=SEED,
            targets=["cpu"], variants=["fp32"],
        )  # fmt: skip
        job.wait()
        job.download(options.work / "job")
    report = json.loads((options.work / "job" / "report.json").read_text())
    result = {"conditions": facts, **summary(report), "seconds": time.monotonic() - started}
    write_json(options.out, result)
    show(result)
    return 0 if all(one["holds"] for one in result["bars"]) else 1


def labelled(folder: Path, classes: int) -> dict[str, list[bytes]]:
    """Photograph and crops by class, of the first classes by number."""
    found = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: int(path.name))[:classes]
    return {path.name: crops(next(path.glob("*.jpg"))) for path in found}


def crops(path: Path) -> list[bytes]:
    """The photograph as it is, then its middle and four corners."""
    whole = Image.open(path).convert("RGB")
    width, height = (round(CROP_SHARE * side) for side in whole.size)
    right, below = whole.width - width, whole.height - height
    corners = [(right // 2, below // 2), (0, 0), (right, 0), (0, below), (right, below)]
    return [path.read_bytes(), *(encoded(whole.crop((x, y, x + width, y + height))) for x, y in corners)]


def encoded(image: Image.Image) -> bytes:
    """A JPEG."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def write_pool(tars: Path, out: Path, count: int) -> None:
    """The first images of the pool's tars, in one."""
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as file:
        for member in islice(pool_members(tars), count):
            entry = tarfile.TarInfo(member.name)
            entry.size = len(member.data or b"")
            file.addfile(entry, io.BytesIO(member.data or b""))


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """What the job found, what each stage took, and the bars."""
    teacher, student = report["teacher"], report["student"]
    stages = {
        name: {"seconds": stage["seconds"], "peak_memory_mib": stage["peak_memory_bytes"] / MIB}
        for name, stage in report["stages"].items()
    }
    most = max(stage["peak_memory_mib"] for stage in stages.values())
    rows = [
        {
            "teacher_size": teacher["preprocessing"]["height"], "classes": teacher["classes"],
            "student": student["name"], "student_size": student["size"], "parameters": student["parameters"],
            "picked": report["selection"]["picked"], "agreement": student["agreement"],
            "parity_images": student["parity_images"], "held_out_agreement": student["held_out_agreement"],
            "held_out_accuracy": student["accuracy"], "held_out": student["held_out"],
        }
    ]  # fmt: skip
    return {
        "rows": rows,
        "stages": stages,
        "bars": [
            bar("the student's classes", student["classes"], 1000, at_least=True),
            bar("the student's side in pixels", student["size"], 224, at_least=True),
            bar("largest peak of a stage, MiB", most, STAGE_MIB, at_least=False),
            bar(
                "agreement on unseen pool images, ten times chance",
                student["agreement"],
                10 * CHANCE,
                at_least=True,
            ),
        ],
    }


def show(result: dict[str, Any]) -> None:
    """Print the result."""
    print_table("Student", ["", "value"], [[key, f"{value}"] for key, value in result["rows"][0].items()])
    rows = [[name, f"{s['seconds']:.1f}", f"{s['peak_memory_mib']:,.0f}"] for name, s in result["stages"].items()]
    print_table("Stages", ["stage", "seconds", "MiB"], rows)
    print_bars(result["bars"])


if __name__ == "__main__":
    raise SystemExit(main())
