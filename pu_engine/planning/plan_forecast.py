"""What selection will find, from a sample of the pool and of the labelled images: for the plan."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from pu_engine.errors import EngineError
from pu_engine.imaging import labelled
from pu_engine.jsonform import from_json
from pu_engine.picking.class_bounds import ClassBounds, class_bounds
from pu_engine.picking.pool_order import order_pool, teacher_view
from pu_engine.planning.plan_samples import Timed
from pu_engine.planning.plan_types import PickForecast
from pu_engine.pools.pool import PoolReader
from pu_engine.prefetch import prefetched
from pu_engine.progress import SilentProgress
from pu_engine.scores.score_files import ScoreFiles
from pu_engine.scores.score_types import FP32, Precision, Scores
from pu_engine.scores.scorer import Scorer
from pu_engine.scoring import LABELLED, batches, features_path, logits_path
from pu_engine.selection import expected_precision, keeps_all, pick
from pu_engine.training.loop import repeatable
from pu_engine.types import LabelledEntry, PlanInputs

SAMPLE = "sample"
SAMPLE_IMAGES = 2000
SCORING_SECONDS = 40.0  # of the sample; a teacher that is slower is asked about fewer images
LEAST_SAMPLE = 64
LABELLED_SHARE = 1 / 3  # of the images that are scored, at most


def forecast_picks(
    inputs: PlanInputs, scorer: Scorer, pool: PoolReader, scratch: Path, *, scoring: Timed, picked: int, draws: int
) -> PickForecast:
    """Score the sample, order it as selection would order the pool, and pick the same share of it.

    Args:
        scratch: a folder for the sample's scores, removed at the end.
        scoring: what scoring an image takes.
        picked: images that selection would pick of the whole pool. draws: of pool images in training.

    Raises:
        EngineError: IMAGES_MISSING where all labelled images are held out; as selection for its options.
    """
    shutil.rmtree(scratch, ignore_errors=True)  # a killed run's
    scratch.mkdir(parents=True)
    files = _scored_sample(inputs, scorer, pool, scratch, affordable=int(SCORING_SECONDS / scoring.seconds_each))
    teacher, options = scorer.teacher, inputs.selection
    own = np.isin(np.arange(teacher.classes), files.positive_classes)
    share = files.scores.images / pool.pool.images
    view = teacher_view(files)
    with repeatable(threads=1):
        order = order_pool(files, view, options, inputs.seed, SilentProgress())
    whole = keeps_all(order, options, draws)
    picked = pool.pool.images if whole else picked
    wanted = max(1, round(share * picked))
    picks = pick(
        order, view, options if options.count is None else replace(options, count=wanted), eligible=~order.junk,
        labelled=own, bounds=_scaled(class_bounds(options, teacher.class_names, own), share), default=wanted,
        seed=inputs.seed, whole=whole,
    )  # fmt: skip
    shutil.rmtree(scratch)
    counts = (np.bincount(view.classes[rows], minlength=teacher.classes) for rows in (picks.picked, slice(None)))
    class_counts, class_available = (tuple(np.rint(count / share).astype(int).tolist()) for count in counts)
    return PickForecast(
        sample=files.scores.images,
        labelled=files.scores.labelled,
        picked=picked,
        score=order.name,
        why=order.why,
        prior=order.prior,
        prior_low=order.interval.low if order.interval else None,
        prior_high=order.interval.high if order.interval else None,
        prior_bound=order.evidence.prior.bound if order.evidence else None,
        separated=order.evidence.separated if order.evidence else None,
        expected=expected_precision(order, picks.picked),
        class_names=teacher.class_names,
        class_counts=class_counts,
        class_available=class_available,
    )


def _scored_sample(
    inputs: PlanInputs, scorer: Scorer, pool: PoolReader, scratch: Path, *, affordable: int
) -> ScoreFiles:
    """The teacher on labelled images that are not held out and on pool images, both evenly spread."""
    rows = json.loads((Path(inputs.intake.path) / "labelled.json").read_text())
    entries = [from_json(LabelledEntry, row) for row in rows]
    usable = [i for i, entry in enumerate(entries) if not entry.held_out]
    if not usable:
        raise EngineError(
            "IMAGES_MISSING",
            f"All {len(entries)} labelled images are held out for the verdict; selection needs at least 1 more.",
            "Give more labelled images, 20 a class or more.",
            labelled=len(entries),
        )
    affordable = max(affordable, LEAST_SAMPLE)
    chosen = _spread(len(usable), int(affordable * LABELLED_SHARE))
    positives = [usable[i] for i in chosen]
    sample = _spread(pool.pool.images, min(SAMPLE_IMAGES, affordable - len(positives)))
    wanted = set(positives)
    own = (image.data for row, image in enumerate(labelled.read(inputs.images)) if row in wanted)
    _score(scorer, own, scratch, LABELLED, inputs.threads)
    _score(scorer, (data for _, data in pool.read(sample)), scratch, SAMPLE, inputs.threads)
    scores = Scores(
        shards=(SAMPLE,), images=len(sample), labelled=len(positives), classes=scorer.teacher.classes,
        views=scorer.views, taps=scorer.teacher.taps, provider=scorer.provider, images_per_second=0.0, shard_keys=(),
        precision=FP32, precision_why=Precision(name=FP32, why="a plan scores in fp32"), taken_over=0,
    )  # fmt: skip
    return ScoreFiles(
        folder=scratch, scores=scores, positive_rows=tuple(range(len(positives))),
        positive_classes=tuple(entries[i].index for i in positives), held_out_digests=(),
    )  # fmt: skip


def _score(scorer: Scorer, images: Iterable[bytes], folder: Path, name: str, threads: int) -> None:
    work = prefetched(lambda b: scorer.score(b, labelled=name == LABELLED), batches(images, scorer.batch), threads)
    logits, features = zip(*work, strict=True)
    np.save(logits_path(folder, name), np.concatenate(logits))
    np.save(features_path(folder, name), np.concatenate(features))


def _spread(available: int, wanted: int) -> list[int]:
    """Indices evenly spread over a list, its ends among them."""
    places: list[int] = np.linspace(0, available - 1, min(available, max(1, wanted))).round().astype(int).tolist()
    return places


def _scaled(bounds: ClassBounds, share: float) -> ClassBounds:
    """The bounds of a sample."""
    floors, caps = (np.floor(share * bounds.floors), np.ceil(share * bounds.caps))
    return ClassBounds(floors=floors.astype(np.int64), caps=caps.astype(np.int64))
