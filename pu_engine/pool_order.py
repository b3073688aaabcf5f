"""Which score orders the pool: one that was asked for, or by default the PU side's where the pool holds the labelled
images' own source, and the teacher's where it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_engine.content_scores import (
    Moments,
    background_gaussian,
    class_gaussians,
    confidence,
    energy,
    moments,
    rank_sum,
    relative_mahalanobis,
    squared_distance,
)
from pu_engine.errors import EngineError
from pu_engine.progress import Progress
from pu_engine.pu_classifier import LEAST_IMAGES, Halves, linear_scores, make_halves, pu_scores
from pu_engine.quota import random_score
from pu_engine.score_files import CLEAN_VIEW, ScoreFiles
from pu_engine.source_test import GATE_PRIOR, SourceTest, gate_is_open, sharpest, source_test
from pu_engine.types import SelectionOptions

SCORES = ("auto", "e2", "pu", "energy", "relative_mahalanobis", "confidence", "random")
# What fits neither the labelled images nor the pool's main body is dropped, but never more than this: on a natural
# pool nearly all images lie outside of the labelled images' own range.
JUNK_SHARE = 0.02
JUNK_DEVIATIONS = 6.0
NORMAL_MAD = 1.4826  # standard deviations of a normal distribution in one median absolute deviation
# Logits that were recovered from probabilities have the energy 0 in each view, up to the probabilities' rounding.
RECOVERED_ENERGY = 0.05

Score = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherView:
    """What the teacher says of each pool image, from its mean logits over image and mirror, [N] each."""

    classes: NDArray[np.int32]
    probability: NDArray[np.float32]
    energy: Score
    recovered: bool  # from probabilities, so that the energy says nothing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PoolOrder:
    """A score for each pool image, [N], and where it comes from."""

    score: Score
    name: str
    why: str
    prior: float | None = None
    prior_given: bool = False
    evidence: SourceTest | None = None  # where the PU side was asked
    junk: NDArray[np.bool_]
    warnings: tuple[str, ...] = ()


def teacher_view(files: ScoreFiles) -> TeacherView:
    """The teacher's class, its probability and the energy of each pool image."""
    count = files.scores.images
    classes, probability, level = np.empty(count, np.int32), np.empty(count, np.float32), np.empty(count)
    start, largest = 0, 0.0
    for logits in files.pool_logits():
        stop = start + len(logits)
        classes[start:stop] = logits.mean(axis=1).argmax(axis=1)
        probability[start:stop] = confidence(logits)
        level[start:stop] = energy(logits)
        # Each view by itself: the mean of two logarithms of probabilities has no energy of 0.
        views = logits.reshape(-1, 1, logits.shape[-1])
        largest = max(largest, float(np.abs(energy(views)).max(initial=0.0)))
        start = stop
    recovered = largest <= RECOVERED_ENERGY
    return TeacherView(classes=classes, probability=probability, energy=level, recovered=recovered)


def order_pool(
    files: ScoreFiles, view: TeacherView, options: SelectionOptions, seed: int, progress: Progress
) -> PoolOrder:
    """Score the pool as `options.score` asks; `auto` also marks junk.

    Raises:
        EngineError: IMAGES_MISSING where the PU score was asked for with fewer than two labelled images.
    """
    asked = options.score
    nothing = np.zeros(files.scores.images, dtype=np.bool_)
    asked_for = "it was asked for"
    match asked:
        case "random":
            return PoolOrder(score=random_score(nothing.size, seed), name=asked, why=asked_for, junk=nothing)
        case "confidence":
            return PoolOrder(score=view.probability.astype(np.float64), name=asked, why=asked_for, junk=nothing)
        case "energy":
            score, warnings = _energy_or_confidence(view)
            return PoolOrder(score=score, name=asked, why=asked_for, junk=nothing, warnings=warnings)
        case "relative_mahalanobis":
            score = _last_tap_score(files, moments(files.pool_features(CLEAN_VIEW)))
            return PoolOrder(score=score, name=asked, why=asked_for, junk=nothing)
        case "e2":
            score, warnings = _e2(files, view, moments(files.pool_features(CLEAN_VIEW)))
            return PoolOrder(score=score, name=asked, why=asked_for, junk=nothing, warnings=warnings)
        case _:
            return _order_with_prior(files, view, options, seed, progress)


def junk_mask(to_labelled: Score, to_pool: Score, labelled_reach: float) -> NDArray[np.bool_]:
    """Images beyond the labelled images' reach and far from the pool's main body, at most 2 % of the pool.

    Args:
        to_labelled, to_pool: squared distances to the nearest class and to the pool, [N].
        labelled_reach: largest squared distance of a labelled image to its nearest class.

    Returns:
        [N]; where there are more, those farthest from the pool's body.
    """
    far = np.log1p(to_pool)
    middle = np.median(far)
    spread = NORMAL_MAD * np.median(np.abs(far - middle))
    suspects = np.flatnonzero((to_labelled > labelled_reach) & (far > middle + JUNK_DEVIATIONS * spread))
    worst = suspects[np.argsort(-to_pool[suspects], kind="stable")][: int(JUNK_SHARE * to_pool.size)]
    mask = np.zeros(to_pool.size, dtype=np.bool_)
    mask[worst] = True
    return mask


def _order_with_prior(
    files: ScoreFiles, teacher: TeacherView, options: SelectionOptions, seed: int, progress: Progress
) -> PoolOrder:
    asked, prior = options.score, options.prior
    pool = moments(files.pool_features(CLEAN_VIEW))
    junk = _junk(files, pool) if asked == "auto" else np.zeros(files.scores.images, dtype=np.bool_)
    positives = len(files.positive_rows)
    if min(positives, files.scores.images) < LEAST_IMAGES:
        why = f"{positives} labelled and {files.scores.images} pool images are too few to train the PU side"
        if asked == "pu":
            raise EngineError("IMAGES_MISSING", f"{why}.", "Give more images, or choose another score.")
        score, warnings = _e2(files, teacher, pool)
        return PoolOrder(score=score, name="e2", why=why, junk=junk, warnings=warnings)

    test = sharpest([_tested(files, view, seed, progress) for view in range(len(files.scores.views))])
    alpha = test.prior.alpha if prior is None else prior
    is_open = gate_is_open(test.prior) if prior is None else prior >= GATE_PRIOR
    found = _found(files.scores.views[test.view], test, prior)
    if asked == "pu" or is_open:
        score = pu_scores(_halves(files, test.view, seed), alpha, seed, progress)
        why = "it was asked for" if asked == "pu" else f"{found} says that the pool holds the labelled images' source"
        name, warnings = "pu", ()
    else:
        score, warnings = _e2(files, teacher, pool)
        name, why = "e2", f"{found} does not show images of the labelled images' own source in the pool"
    return PoolOrder(
        score=score, name=name, why=why, prior=alpha, prior_given=prior is not None, evidence=test, junk=junk,
        warnings=warnings,
    )  # fmt: skip


def _tested(files: ScoreFiles, view: int, seed: int, progress: Progress) -> SourceTest:
    return source_test(view, *linear_scores(_halves(files, view, seed), seed, progress))


def _halves(files: ScoreFiles, view: int, seed: int) -> Halves:
    return make_halves(
        files.positive_features(view),
        np.array(files.positive_classes),
        lambda: files.pool_features(view),
        np.random.default_rng(seed),
    )


def _found(view: str, test: SourceTest, given: float | None) -> str:
    if given is not None:
        return f"the given prior {given:.3f}"
    bound = min(1.0, test.prior.bound)
    told = f"{view} view, in which {test.separated:.1%} of labelled images rank above a pool image"
    return f"the estimated prior {test.prior.alpha:.3f} (upper bound {bound:.3f}; {told})"


def _e2(files: ScoreFiles, view: TeacherView, pool: Moments) -> tuple[Score, tuple[str, ...]]:
    """Rank of the energy of the logits' mean over image and mirror + rank of the relative class Mahalanobis score."""
    first, warnings = _energy_or_confidence(view)
    return rank_sum(first, _last_tap_score(files, pool)), warnings


def _energy_or_confidence(view: TeacherView) -> tuple[Score, tuple[str, ...]]:
    if not view.recovered:
        return view.energy, ()
    warning = "The teacher gives probabilities, so its energy is constant; its confidence was used in place of it."
    return view.probability.astype(np.float64), (warning,)


def _last_tap_score(files: ScoreFiles, pool: Moments) -> Score:
    columns = slice(-files.last_tap_width, None)
    labelled = files.positive_features(CLEAN_VIEW)[:, columns]
    classes = class_gaussians(labelled, np.array(files.positive_classes))
    background = background_gaussian(
        Moments(count=pool.count, mean=pool.mean[columns], covariance=pool.covariance[columns, columns])
    )
    chunks = files.pool_features(CLEAN_VIEW)
    return np.concatenate([relative_mahalanobis(chunk[:, columns], classes, background) for chunk in chunks])


def _junk(files: ScoreFiles, pool: Moments) -> NDArray[np.bool_]:
    labelled = files.positive_features(CLEAN_VIEW)
    classes = class_gaussians(labelled, np.array(files.positive_classes))
    background = background_gaussian(pool)
    chunks = [(squared_distance(c, classes), squared_distance(c, background)) for c in files.pool_features(CLEAN_VIEW)]
    to_labelled, to_pool = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    return junk_mask(to_labelled, to_pool, float(squared_distance(labelled, classes).max()))
