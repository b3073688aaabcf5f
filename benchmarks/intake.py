"""Does intake find what a stranger's teacher expects? Every teacher of an index, with few and with fewer images.

`python -m benchmarks.intake --teachers ../shared/teachers --data ../shared/data --out F.json`

Each teacher goes through the stage `intake` as a process of its own, with 100, 20 and 5 labelled images a class
where there are so many (else half of what there is). What it found is compared with the index, and measured on
images that intake never saw: under the convention found, and under the documented one. The index and those images
measure only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.conditions import conditions
from benchmarks.table import bar, print_bars, print_table, write_json
from benchmarks.teacher_images import LabelledBytes, TeacherImages, images_of, label_index, write_tar
from pu_engine.imaging.images import decode_resized
from pu_engine.imaging.preprocessing import image_channels, model_input
from pu_engine.jsonform import from_json
from pu_engine.results import file_sha256
from pu_engine.runtime import forward
from pu_engine.runtime.sessions import open_session
from pu_engine.teacher import conventions
from pu_engine.types import Preprocessing, Teacher
from pu_engine.variants.agreement import wilson_interval

PER_CLASS = (100, 20, 5)
BAR_PER_CLASS = 20
POINTS, SECONDS = 0.03, 20.0
THREADS, SEED = 2, 0
SAME_INPUT = 0.01  # of a channel's range: two scalings that differ less are one
# Teachers whose index entry has no data: what is tried instead, and whether it can be right at all.
SUBSTITUTES = {"textline_orientation_paddle.onnx": "text", "fashion_mlp_extdata.onnx": "mnist"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One teacher with so many labelled images a class."""

    model: str
    dataset: str
    per_class: int
    labelled: int
    error: str = ""  # a code and its message
    found: str = ""
    documented: str = ""
    layout_right: bool = False
    channels_right: bool = False
    scaling: str = ""  # same | tied: the images can't tell the documented one from it | other
    agreement: float = 0.0  # with the documented convention, on the measured images
    accuracy: float = 0.0
    accuracy_low: float = 0.0
    accuracy_high: float = 0.0
    accuracy_documented: float = 0.0  # the documented convention on the same images
    batch: str = ""
    output: str = ""
    seconds: float = 0.0
    peak_mib: float = 0.0
    warnings: tuple[str, ...] = ()


def main() -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.intake", description=__doc__)
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[], help="parts of file names")
    parser.add_argument("--per-class", nargs="*", type=int, default=list(PER_CLASS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    where = conditions(seed=SEED, threads=THREADS, per_class=options.per_class)
    entries = json.loads((options.teachers / "index.json").read_text())["models"]
    rows = []
    for entry in entries:
        if options.only and not any(part in entry["file"] for part in options.only):
            continue
        images = images_of(entry["dataset"] or SUBSTITUTES[entry["file"]], options.data)
        for count in levels(images, options.per_class):
            row = measure(entry, images, count, options.teachers)
            print(_line(row), flush=True)
            rows.append(row)
    result = {"conditions": where, "rows": [asdict(row) for row in rows], **summary(rows)}
    show(rows)
    print_bars(result["bars"])
    write_json(options.out, result)


def levels(images: TeacherImages, wanted: list[int]) -> list[int]:
    """How many images a class are tried: those wanted, as far as there are so many."""
    return sorted({min(count, images.per_class) for count in wanted}, reverse=True)


def measure(entry: Mapping[str, Any], images: TeacherImages, per_class: int, teachers: Path) -> Row:
    """One intake, and what it found."""
    sent = images.first(per_class)
    start: dict[str, Any] = {
        "model": entry["file"],
        "dataset": entry["dataset"] or SUBSTITUTES[entry["file"]],
        "per_class": per_class,
        "labelled": len(sent),
    }
    with tempfile.TemporaryDirectory(prefix="punnet-intake-") as folder:
        work = Path(folder)
        run_stage(entry, sent, teachers, work)
        if (work / "error.json").exists():
            error = json.loads((work / "error.json").read_text())
            return Row(**start, error=f"{error['code']}: {error['message']}", documented=_documented_text(entry))
        manifest = json.loads((work / "out" / "manifest.json").read_text())
        teacher = from_json(Teacher, manifest["result"])
        return Row(
            **start,
            **compare(entry, images, teacher, work / "out" / "canonical.onnx"),
            seconds=manifest["seconds"],
            peak_mib=manifest["peak_memory_bytes"] / 2**20,
            warnings=teacher.warnings,
        )


def run_stage(entry: Mapping[str, Any], sent: list[LabelledBytes], teachers: Path, work: Path) -> None:
    """The stage as the server runs it, without its confinement."""
    write_tar(work / "images.tar", sent)
    files = {name["file"]: teachers / name["file"] for name in entry["extra_files"]}
    inputs = {
        "teacher": _file(teachers / entry["file"]),
        "external_data": {name: _file(path) for name, path in files.items()},
        "images": {"tar": _file(work / "images.tar")},
        "display_name": entry["file"],
        "seed": SEED,
        "threads": THREADS,
    }
    (work / "inputs.json").write_text(json.dumps(inputs))
    command = [sys.executable, "-I", "-m", "pu_engine.stage", "intake", str(work)]
    subprocess.run(command, check=False, stderr=subprocess.DEVNULL)


def compare(entry: Mapping[str, Any], images: TeacherImages, teacher: Teacher, canonical: Path) -> dict[str, Any]:
    """The convention found beside the documented one, on images that intake never saw."""
    found, documented = teacher.preprocessing, documented_preprocessing(entry, teacher.preprocessing)
    index = label_index(images.classes, entry["label_offset"])
    labels = np.array([index[image.label] for image in images.measured])
    ours = answers(canonical, images.measured, found, teacher.batch)
    theirs = answers(canonical, images.measured, documented, teacher.batch)
    accuracy = float((ours == labels).mean())
    low, high = wilson_interval(accuracy, len(labels))
    agreement = float((ours == theirs).mean())
    same = same_input(found, documented)
    tied = any(same_input(row.preprocessing, documented) and row.tied for row in teacher.hypotheses)
    return {
        "found": f"{found.layout} {conventions.name(found)}",
        "documented": _documented_text(entry),
        "layout_right": found.layout == documented.layout,
        "channels_right": found.channels == documented.channels,
        "scaling": "same" if same else "tied" if tied else "other",
        "agreement": agreement,
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_documented": float((theirs == labels).mean()),
        "batch": "dynamic" if teacher.batch is None else str(teacher.batch),
        "output": teacher.output,
    }


def documented_preprocessing(entry: Mapping[str, Any], found: Preprocessing) -> Preprocessing:
    """The index's convention as ours; what it leaves open is as found."""
    size = entry["image_size"] or [found.height, found.width]
    channels = {"gray": "GRAY"}.get(entry["colour_order"], entry["colour_order"])
    count = 1 if channels == "GRAY" else 3
    how = entry["scaling"]
    scale, mean, std = 1 / how["div"], tuple(how["mean"]), tuple(how["std"])
    if entry["dataset"] == "digits":
        scale *= 16 / 255  # the index speaks of values 0 to 16
    return Preprocessing(
        layout=entry["layout"].split()[0],
        channels=channels,
        scale=scale,
        mean=mean * count if len(mean) == 1 else mean,
        std=std * count if len(std) == 1 else std,
        dtype=found.dtype,
        height=size[0],
        width=size[1],
        fit="crop" if "crop" in entry["resize"] else "stretch",
    )


def answers(
    canonical: Path, images: tuple[LabelledBytes, ...], how: Preprocessing, batch: int | None
) -> NDArray[np.int64]:
    """The output index of the largest score for each image."""
    session = open_session(canonical, threads=THREADS)
    channels = image_channels(how)
    pixels = np.stack([decode_resized(i.data, how.height, how.width, channels, how.fit) for i in images])
    found: NDArray[np.int64] = forward.run_rows(session, model_input(pixels, how), batch)[0].argmax(axis=1)
    return found


def same_input(a: Preprocessing, b: Preprocessing) -> bool:
    """Whether two preprocessings make nearly the same tensor of any image."""
    if (a.layout, a.channels, a.fit) != (b.layout, b.channels, b.fit):
        return False
    ends = []
    for how in (a, b):
        mean, std = np.array(how.mean), np.array(how.std)
        ends.append(np.stack([-mean / std, (255 * how.scale - mean) / std]))
    spread = np.abs(ends[1][1] - ends[1][0])
    return bool((np.abs(ends[0] - ends[1]) <= SAME_INPUT * spread).all())


def summary(rows: list[Row]) -> dict[str, Any]:
    """The figures that the bars speak of."""
    judged = [row for row in rows if row.model not in SUBSTITUTES and row.per_class == _judged_count(row, rows)]
    good = [row for row in judged if not row.error and row.accuracy >= row.accuracy_documented - POINTS]
    right = [row for row in judged if not row.error and row.layout_right and row.channels_right]
    taken = [row.seconds for row in rows if not row.error]
    median = statistics.median(taken) if taken else 0.0
    return {
        "judged": len(judged),
        "median_seconds": median,
        "slowest_seconds": max(taken, default=0.0),
        "largest_peak_mib": max((row.peak_mib for row in rows), default=0.0),
        "bars": [
            bar("teachers within 3 points", len(good), len(judged), at_least=True),
            bar("layout and colour order right", len(right), len(judged), at_least=True),
            bar("median seconds", median, SECONDS, at_least=False),
        ],
    }


def _judged_count(row: Row, rows: list[Row]) -> int:
    """20 a class, else the most below that there are."""
    return max(
        (r.per_class for r in rows if r.model == row.model and r.per_class <= BAR_PER_CLASS), default=row.per_class
    )


def show(rows: list[Row]) -> None:
    """The table for people."""
    lines = [
        [
            row.model.removesuffix(".onnx"),
            str(row.per_class),
            row.found or row.error.partition(":")[0],
            row.scaling or "-",
            f"{row.agreement:.3f}",
            f"{row.accuracy:.3f}",
            f"{row.accuracy_documented:.3f}",
            row.batch,
            f"{row.seconds:.1f}",
            f"{row.peak_mib:.0f}",
        ]
        for row in rows
    ]
    columns = ["teacher", "a class", "found", "scaling", "agrees", "accuracy", "documented", "batch", "s", "MiB"]
    print_table("What intake found", columns, lines)


def _line(row: Row) -> str:
    if row.error:
        return f"{row.model} {row.per_class}: {row.error}"
    how_well = f"{row.accuracy:.3f} of {row.accuracy_documented:.3f}"
    return f"{row.model} {row.per_class}: {row.found} ({row.scaling}), {how_well}, {row.seconds:.1f} s"


def _documented_text(entry: Mapping[str, Any]) -> str:
    return f"{entry['layout']} {entry['colour_order']} {entry['scaling']['formula']}"


def _file(path: Path) -> dict[str, str]:
    return {"path": str(path.resolve()), "sha256": file_sha256(path)}


if __name__ == "__main__":
    main()
