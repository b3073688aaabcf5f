"""The search for a teacher's preprocessing: families first, then relatives, then crops, each on labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pu_engine.teacher import probe, trials
from pu_engine.teacher.labels import ClassOrder
from pu_engine.teacher.probe import Catalogue
from pu_engine.teacher.trials import Run, Trial
from pu_engine.types import LabelledImages, Preprocessing

# The cost is bounded in multiply-accumulates, not seconds: the same file gets the same images on any machine.
PROBE_MACS = 60e9
SCREENED_IMAGES, PROBED_IMAGES = (10, 60), (30, 200)  # fewest and most
FAMILIES = 2  # whose relatives are tried
FINALISTS = 6
CROPS = 2
IMAGES_PER_CLASS = 3  # tried for teachers of many classes, beyond the usual most

Families = Sequence[tuple[Preprocessing, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A teacher that can be run, and what it is run on."""

    run: Run
    macs: int  # for one image
    images: LabelledImages
    found: Catalogue
    orders: Sequence[ClassOrder]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the search ended with: the trials, best first, and the images of the best."""

    trials: tuple[Trial, ...]
    pixels: NDArray[np.uint8]  # [n, H, W, C], as the first trial fits them
    labels: tuple[str, ...]  # [n]


def search(question: Question, families: Families, *, crops: bool) -> Answer:
    """Rank preprocessings by the labels' mean negative log-likelihood.

    Args:
        families: `conventions.hypotheses`.
        crops: whether images are cut as well as stretched; a cut is preferred only where the images clearly say so.

    Raises:
        EngineError: MODEL_NONFINITE, TEACHER_IGNORES_IMAGE, LABELS_UNMAPPABLE, IMAGE_REJECTED.
    """
    tried = len(families) + max(len(family) for family in families)
    classes = len(question.found.names)
    many = _affordable(question.macs * FINALISTS, PROBED_IMAGES, classes)
    few = min(many, _affordable(question.macs * tried, SCREENED_IMAGES, classes))
    chosen = probe.choose(question.found, many, question.seed)
    labels = tuple(question.found.labels[index] for index in chosen)
    pixels = probe.decode(question.images, chosen, families[0][0])

    def trials_of(candidates: Sequence[Preprocessing], images: NDArray[np.uint8]) -> list[Trial]:
        return trials.try_all(question.run, images, labels[: len(images)], candidates, question.orders)

    screened = trials_of([family[0] for family in families], pixels[:few])
    trials.check_usable(screened)
    leading = [trial.preprocessing for trial in screened[:FAMILIES]]
    relatives = [member for family in families if family[0] in leading for member in family[1:]]
    if relatives:
        screened += trials_of(relatives, pixels[:few])
    screened.sort(key=lambda trial: trial.cost)
    ranked = trials_of([trial.preprocessing for trial in screened[:FINALISTS]], pixels)
    trials.check_usable(ranked)
    if not crops:
        return Answer(trials=tuple(ranked), pixels=pixels, labels=labels)
    cut_ones = [replace(trial.preprocessing, fit="crop") for trial in ranked[:CROPS]]
    cut_pixels = probe.decode(question.images, chosen, cut_ones[0])
    cut = trials_of(cut_ones, cut_pixels)
    if cut and trials.significantly_better(cut[0], ranked[0]):
        return Answer(trials=(*cut, *ranked), pixels=cut_pixels, labels=labels)
    return Answer(trials=(*ranked, *cut), pixels=pixels, labels=labels)


def _affordable(macs: int, bounds: tuple[int, int], classes: int) -> int:
    """Images to run, for so many multiply-accumulates an image; more of them for many classes."""
    fewest, most = bounds
    return int(np.clip(PROBE_MACS / max(1, macs), fewest, max(most, min(IMAGES_PER_CLASS * classes, 4 * most))))
