"""The last stage: every artifact of the job in one folder, with report.json and report.html beside them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pu_engine.imaging.images import decode
from pu_engine.imaging.preprocessing import image_channels
from pu_engine.imaging.thumbnails import thumbnail
from pu_engine.jsonform import from_json, to_json
from pu_engine.pages.differences import Differences
from pu_engine.pages.report_data import (
    Results,
    log_lines,
    passed_variants,
    read_results,
    report_json,
    verified_variants,
)
from pu_engine.pages.report_page import ClassSamples, Download, device_words, render
from pu_engine.pages.report_samples import (
    LABELLED,
    Answer,
    ClassRows,
    Picture,
    SelectionRows,
    class_rows,
    picture,
    shown_answers,
    shown_classes,
)
from pu_engine.pools.pool import PoolReader, open_pool
from pu_engine.progress import Progress
from pu_engine.results import write_atomic
from pu_engine.types import Report, ReportInputs
from pu_engine.variants.variant_rows import Point, tradeoff

STUDENT_FILES = ("student.safetensors", "student.json", "curve.jsonl", "events.tfevents", "differences.json")
SELECTION_FILE, LABELLED_SCORES = "selection.parquet", "labelled.scores.npy"
LOG_FILE = "job.log"
SAMPLES_FILE = "samples.json"
HELD_OUT_ANSWERS = "held_out.answers.npy"  # of verification, whose module would import torch
FONT_CACHE = ".matplotlib"


def run(inputs: ReportInputs, out: Path, progress: Progress) -> Report:
    """Copy what is handed out and write the report.

    Withheld variants are named in the report and stay behind.

    Raises:
        EngineError: POOL_INVALID where the pool changed since it was scored.
    """
    pool = open_pool(inputs.pool)
    results = read_results(inputs, pool.pool)
    copied = copy_artifacts(inputs, results, out)
    data = report_json(results)
    write_atomic(out / "report.json", json.dumps(data, indent=1, allow_nan=False).encode())
    rows = read_selection(Path(inputs.selection.path) / SELECTION_FILE)
    samples = class_samples(results, rows, pool, Path(inputs.gathering.path))
    answers = held_out_answers(results, Path(inputs.gathering.path), Path(inputs.verification.path))
    content = {"classes": to_json(samples), "held_out": to_json(answers)}
    write_atomic(out / SAMPLES_FILE, json.dumps(content, allow_nan=False).encode())
    differs = read_differences(Path(inputs.distillation.path))
    curve, points = Path(inputs.distillation.path) / "curve.jsonl", tradeoff(data, results.verdicts.teacher_accuracy)
    labelled = labelled_scores(Path(inputs.selection.path))
    plots = draw(results, rows, labelled, curve=curve, differs=differs, points=points, font_cache=out / FONT_CACHE)
    worst = worst_pictures(differs, Path(inputs.gathering.path), results.teacher.class_names)
    page = render(data, downloads(results), samples, plots, differences=differs, worst=worst)
    write_atomic(out / "report.html", page.encode())
    write_atomic(out / LOG_FILE, "".join(f"{line}\n" for line in log_lines(results)).encode())
    progress.update(1, 1, "report")
    return Report(artifacts=(*copied, "report.json", "report.html", SAMPLES_FILE, LOG_FILE))


def copy_artifacts(inputs: ReportInputs, results: Results, out: Path) -> tuple[str, ...]:
    """Copy the files of earlier stages that are handed out; their names in `out`."""
    engines = {v.path for v in results.bundles.engines}
    homes = {v.path: inputs.bundling if v.path in engines else inputs.export for v in passed_variants(results)}
    sources = {name: Path(home.path) / name for name, home in homes.items()}
    beside = (file.path for v in passed_variants(results) for file in v.beside)
    sources |= {name: Path(inputs.export.path) / name for name in beside}
    sources |= {b.path: Path(inputs.bundling.path) / b.path for b in results.bundles.bundles}
    sources |= {name: Path(inputs.distillation.path) / name for name in STUDENT_FILES}
    sources[SELECTION_FILE] = Path(inputs.selection.path) / SELECTION_FILE
    for name, source in sources.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, out / name)
    return tuple(sources)


def read_selection(path: Path) -> SelectionRows:
    """The columns of selection.parquet that the report shows."""
    table = pq.read_table(path, columns=["score", "class", "probability", "picked", "why"])
    return SelectionRows(
        score=table["score"].to_numpy().astype(np.float64),
        class_index=table["class"].to_numpy().astype(np.int64),
        probability=table["probability"].to_numpy().astype(np.float64),
        picked=table["picked"].to_numpy().astype(np.bool_),
        why=table["why"].to_pylist(),
    )


def labelled_scores(selection: Path) -> NDArray[np.float64] | None:
    """Scores of the labelled images, [P], where the source classifier ordered the pool."""
    path = selection / LABELLED_SCORES
    return np.load(path) if path.is_file() else None


def class_samples(results: Results, rows: SelectionRows, pool: PoolReader, gathering: Path) -> list[ClassSamples]:
    """Pictures of each shown class: of the labelled images, and of the pool."""
    chosen = [class_rows(rows, index) for index in shown_classes(results.selection.class_counts)]
    wanted = sorted({row for c in chosen for row in (*c.best, *c.borderline, *c.rejected)})
    channels = image_channels(results.teacher.preprocessing)
    pictures = {row: picture(rows, row, decode(data, channels)) for row, data in pool.read(wanted)}
    labelled = np.load(gathering / "labelled.images.npy", mmap_mode="r")
    labels = np.load(gathering / "labelled.labels.npy")
    return [
        _class_samples(results, c, pictures, [labelled[i] for i in np.flatnonzero(labels == c.class_index)[:LABELLED]])
        for c in chosen
    ]


def held_out_answers(results: Results, gathering: Path, verification: Path) -> list[Answer]:
    """Held-out labelled images with the answers of teacher and student."""
    images = np.load(gathering / "held_out.images.npy", mmap_mode="r")
    labels = np.load(gathering / "held_out.labels.npy")
    teacher = np.load(gathering / "held_out.targets.npy")[:, 0].argmax(axis=1)
    student = np.load(verification / HELD_OUT_ANSWERS)
    names = results.teacher.class_names
    return [
        Answer(
            source=thumbnail(images[i]), label=names[labels[i]], teacher=names[teacher[i]], student=names[student[i]]
        )
        for i in shown_answers(labels, teacher, student)
    ]


def read_differences(distillation: Path) -> Differences:
    """Where the student answers unlike the teacher."""
    return from_json(Differences, json.loads((distillation / "differences.json").read_text()))


def worst_pictures(differs: Differences, gathering: Path, names: Sequence[str]) -> list[Picture]:
    """The parity images on which student and teacher are furthest apart."""
    images = np.load(gathering / "parity.images.npy", mmap_mode="r")
    return [
        Picture(
            source=thumbnail(images[image.row]),
            caption=f"{image.kl:.2g}",
            title=f"teacher: {names[image.teacher]}, student: {names[image.student]}, KL {image.kl:.3g} nats",
        )
        for image in differs.worst
    ]


def draw(
    results: Results,
    rows: SelectionRows,
    labelled: NDArray[np.float64] | None,
    *,
    curve: Path,
    differs: Differences,
    points: Sequence[Point],
    font_cache: Path,
) -> dict[str, str]:
    """The report's plots by name, as SVG.

    Args:
        labelled: scores of the labelled images, where selection has them.
    """
    # A confined child may write nowhere but here, and matplotlib wants to keep its list of fonts.
    os.environ.setdefault("MPLCONFIGDIR", str(font_cache))
    from pu_engine.pages import plots

    selection, names = results.selection, results.teacher.class_names
    steps = [json.loads(line) for line in curve.read_text().splitlines()]
    agreements = [(s["step"], s["held_out_agreement"]) for s in steps if "held_out_agreement" in s]
    drawn = {
        "scores": plots.score_histogram(rows.score, rows.picked, selection.threshold, selection.score, labelled),
        "classes": plots.class_bars(names, selection.class_counts, selection.class_available),
        "curve": plots.training_curve([s["step"] for s in steps], [s["loss"] for s in steps], agreements),
        "parts": plots.loss_parts(steps),
        "agreement": plots.class_agreement(names, differs.class_agreements, differs.class_images),
        "latency": plots.latency_bars([row for row in results.verdicts.latencies if row.threads == 1]),
        "tradeoff": plots.accuracy_over_latency(points),
    }
    if selection.reliability:
        drawn["reliability"] = plots.reliability(selection.reliability)
    shutil.rmtree(font_cache, ignore_errors=True)
    return drawn


def downloads(results: Results) -> list[Download]:
    """Rows of the table of files: the models, the recommended ones first, and the bundles."""
    verified = verified_variants(results.verdicts)
    chosen = {r.variant for r in results.verdicts.recommendations} or {results.verdicts.recommended}
    passed = passed_variants(results)
    rows = [
        Download(
            path=v.path,
            use=device_words(v.name, v.target, v.format, v.details),
            precision=v.precision,
            size=v.size - sum(file.size for file in v.beside),
            sha256=v.sha256,
            recommended=v.name in chosen,
            verified=v.name in verified,
        )
        for v in passed
    ]
    companions = [
        Download(
            path=file.path,
            use=f"belongs to {v.path}",
            precision=v.precision,
            size=file.size,
            sha256=file.sha256,
            recommended=v.name in chosen,
            verified=v.name in verified,
        )
        for v in passed
        for file in v.beside
    ]
    bundles = [
        Download(
            path=b.path,
            use=f"{b.device}: all that it needs, to unpack and follow README.md",
            precision=", ".join(b.variants),
            size=b.size,
            sha256=b.sha256,
            recommended=False,
            verified=True,
        )
        for b in results.bundles.bundles
    ]
    return [*sorted([*rows, *companions], key=lambda row: not row.recommended), *bundles]


def _class_samples(
    results: Results, rows: ClassRows, pictures: Mapping[int, Picture], labelled: Sequence[Any]
) -> ClassSamples:
    index = rows.class_index
    return ClassSamples(
        name=results.teacher.class_names[index],
        picked=results.selection.class_counts[index],
        available=results.selection.class_available[index],
        labelled=tuple(Picture(source=thumbnail(i), caption="labelled", title="") for i in labelled),
        best=tuple(pictures[r] for r in rows.best),
        borderline=tuple(pictures[r] for r in rows.borderline),
        rejected=tuple(pictures[r] for r in rows.rejected),
    )
