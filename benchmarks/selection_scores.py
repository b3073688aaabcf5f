"""The engine's scorer on a benchmark's images, once and kept; and pools put together from what it said.

A scoring of a pool is a folder that `pu_engine.scores.score_files` reads. Here its rows are copied from the sources'
scores, so that a hundred pools cost one run of the teacher.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.selection_images import Sizes, Source
from pu_engine import intake
from pu_engine.array_file import ArrayWriter, is_whole
from pu_engine.pipeline import INTAKE, SCORING
from pu_engine.prefetch import prefetched
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest, file_sha256, write_atomic
from pu_engine.scores.score_files import ScoreFiles
from pu_engine.scores.score_types import FP32, Precision, Scores
from pu_engine.scores.scorer import Scorer, open_scorer
from pu_engine.scoring import LABELLED, batches, features_path, logits_path, survey
from pu_engine.types import File, Folder, IntakeInputs, LabelledFile, LabelledImages, Teacher

POOL = "pool"
NEAR = "near"
MIXED_IN = {"mix": "mixed", "mix unseen": "unseen", "mix refiled": "refiled"}
DRAWN_FROM = {"natural": (), "wild": ("junk",)} | {pool: (source,) for pool, source in MIXED_IN.items()}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """A source with the teacher's logits [N, 2, K] and features [N, V, D], clean view first."""

    source: Source
    logits: NDArray[np.float32]
    features: NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DrawnPool:
    """A pool's scoring; which of its images are right to pick, [N], and which are left out of the AUC."""

    files: ScoreFiles
    right: NDArray[np.bool_]
    arguable: NDArray[np.bool_]
    labelled: NDArray[np.int64]  # rows of the source `labelled`
    sources: tuple[str, ...]  # names of those that the pool is put together from
    origin: NDArray[np.int64]  # [N, 2], which of them, and its row


def open_teacher(model: Path, images: dict[str, list[bytes]], cache: Path) -> tuple[Scorer, Path]:
    """The engine's intake of a teacher, from the cache where it was done; its scorer and the folder of its scores."""
    digest = file_sha256(model)
    folder = cache / f"{model.stem}-{digest[:12]}-{INTAKE.schema}"
    labelled = _labelled_files(images, cache / "labelled")
    if not (folder / "intake" / "manifest.json").is_file():
        (folder / "intake").mkdir(parents=True, exist_ok=True)
        inputs = IntakeInputs(
            teacher=File(path=str(model.resolve()), sha256=digest), images=labelled, display_name=model.name
        )
        teacher = intake.run(inputs, folder / "intake", SilentProgress())
        manifest = build_manifest(folder / "intake", teacher, {})
        write_atomic(folder / "intake" / "manifest.json", json.dumps(manifest).encode())
    where = Folder(path=str(folder / "intake"), sha256="")
    _, matched = survey(labelled, where)
    return open_scorer(where, "cpu", matched), folder


def scored(source: Source, scorer: Scorer, folder: Path, threads: int) -> Scored:
    """What the teacher says of a source's images, from the cache where it has said it."""
    digest = hashlib.sha256(repr((scorer.matched, SCORING.schema)).encode())
    for file in source.files:
        digest.update(hashlib.sha256(file).digest())
    name = f"{source.name}-{digest.hexdigest()[:12]}"
    logits_shape = (len(source.files), 2, scorer.teacher.classes)
    features_shape = (len(source.files), len(scorer.views), scorer.width)
    paths = logits_path(folder, name), features_path(folder, name)
    if not (is_whole(paths[0], logits_shape, np.float32) and is_whole(paths[1], features_shape, np.float16)):
        with (
            ArrayWriter(paths[0], logits_shape, np.float32) as logits_file,
            ArrayWriter(paths[1], features_shape, np.float16) as features_file,
        ):
            work = batches(source.files, scorer.batch)
            labelled = source.name == LABELLED
            for logits, features in prefetched(lambda batch: scorer.score(batch, labelled=labelled), work, threads):
                logits_file.append(logits)
                features_file.append(features)
    return Scored(source=source, logits=np.load(paths[0]), features=np.load(paths[1]))


def draw(
    pool: str, sources: Mapping[str, Scored], *, a_class: int, sizes: Sizes, seed: int, scorer: Scorer, work: Path
) -> DrawnPool:  # fmt: skip
    """One pool (`natural`, `mix`, ...) with labelled images, all drawn by the seed, as a scoring in `work`."""
    generator = np.random.default_rng([seed, 1])
    labels = np.array(sources["labelled"].source.labels)
    kept = np.concatenate([generator.permutation(np.flatnonzero(labels == k))[:a_class] for k in np.unique(labels)])
    natural = sources["natural"]
    relations = np.array(natural.source.relations)
    everything, outside = np.arange(len(relations)), np.flatnonzero(relations == "out")
    match pool:
        case "natural":
            parts = [(natural, everything)]
            right = relations == "in"
        case "mix" | "mix unseen" | "mix refiled":
            others = generator.permutation(outside)[: sizes.pool - sizes.mixed]
            added = sources[MIXED_IN[pool]]
            own = generator.permutation(len(added.logits))[: sizes.mixed]
            parts = [(natural, others), (added, own)]
            right = np.arange(sizes.pool) >= len(others)
        case _:
            real = generator.permutation(everything)[: sizes.pool - sizes.junk]
            made = generator.permutation(len(sources["junk"].logits))[: sizes.junk]
            parts = [(natural, real), (sources["junk"], made)]
            right = np.arange(sizes.pool) < len(real)
    order = generator.permutation(sum(len(rows) for _, rows in parts))
    logits = np.concatenate([part.logits[rows] for part, rows in parts])[order]
    features = np.concatenate([part.features[rows] for part, rows in parts])[order]
    arguable = relations[order] == NEAR if pool == "natural" else np.zeros(len(order), dtype=np.bool_)
    files = _write_scoring(work, sources["labelled"], kept, logits, features, scorer=scorer)
    origin = np.concatenate([np.stack([np.full(len(rows), i), rows], axis=1) for i, (_, rows) in enumerate(parts)])
    return DrawnPool(
        files=files, right=right[order], arguable=arguable, labelled=kept,
        sources=tuple(part.source.name for part, _ in parts), origin=origin[order].astype(np.int64),
    )  # fmt: skip


def _write_scoring(
    work: Path, labelled: Scored, kept: NDArray[np.int64], logits: NDArray[np.float32],
    features: NDArray[np.float16], *, scorer: Scorer,
) -> ScoreFiles:  # fmt: skip
    work.mkdir(parents=True, exist_ok=True)
    teacher: Teacher = scorer.teacher
    np.save(logits_path(work, LABELLED), labelled.logits[kept])
    np.save(features_path(work, LABELLED), labelled.features[kept])
    np.save(logits_path(work, POOL), logits)
    np.save(features_path(work, POOL), features)
    scores = Scores(
        shards=(POOL,), images=len(logits), labelled=len(kept), classes=teacher.classes, views=scorer.views,
        taps=teacher.taps, provider="cpu", images_per_second=0.0, shard_keys=(), precision=FP32,
        precision_why=Precision(name=FP32, why="a benchmark scores in fp32"), taken_over=0,
    )  # fmt: skip
    return ScoreFiles(
        folder=work, scores=scores, positive_rows=tuple(range(len(kept))),
        positive_classes=tuple(teacher.class_order[labelled.source.labels[i]] for i in kept), held_out_digests=(),
    )  # fmt: skip


def _labelled_files(images: dict[str, list[bytes]], folder: Path) -> LabelledImages:
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for label, contents in images.items():
        for number, content in enumerate(contents):
            path = folder / f"{label}-{number}.jpg"
            if not path.is_file():
                path.write_bytes(content)
            files.append(LabelledFile(label=label, image=File(path=str(path.resolve()), sha256=file_sha256(path))))
    return LabelledImages(files=tuple(files))
