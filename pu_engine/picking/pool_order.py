"""Which score orders the pool: one that was asked for, or by default the PU side's where the pool holds the labelled
images' own source, and the teacher's where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.picking.attention_head import paper_scores
from pu_engine.picking.content_scores import (
    Moments,
    background_gaussian,
    class_gaussians,
    confidence,
    content_score,
    energy,
    moments,
    rank_sum,
    relative_mahalanobis,
    squared_distance,
)
from pu_engine.picking.prior import PriorInterval, prior_interval
from pu_engine.picking.pu_classifier import beliefs, source_inputs, source_scores
from pu_engine.picking.pu_folds import LEAST_IMAGES, Features, Folds, make_folds
from pu_engine.picking.quota import random_score
from pu_engine.picking.source_test import GATE_PRIOR, SourceTest, gate_is_open, sharpest, source_test
from pu_engine.progress import Progress
from pu_engine.scores.score_files import CLEAN_VIEW, ScoreFiles
from pu_engine.types import SelectionOptions

SCORES = ("auto", "pu", "content", "e2", "energy", "relative_mahalanobis", "confidence", "random", "paper")
PU_SCORES = ("pu", "paper")
MOST_RESAMPLED = 20_000  # pool images for the prior's interval: more would hardly narrow it
MOST_COLUMNS = 2048  # of taps with their spreads: a covariance of more takes hundreds of megabytes
MOST_BELIEVED = 0.95  # of the pool may count as positive in the second round
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
    interval: PriorInterval | None = None  # of the prior, where it was estimated
    labelled: Score | None = None  # the labelled images' own, where the source classifier orders, out of fold, [P]
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
            score, _ = _relative_scores(files, _pool_moments(files))
            return PoolOrder(score=score, name=asked, why=asked_for, junk=nothing)
        case "e2" | "content":
            score, warnings = _content(asked, files, view, _pool_moments(files))
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
    warnings: tuple[str, ...] = ()
    pool = _pool_moments(files)
    junk = _junk(files, pool) if asked == "auto" else np.zeros(files.scores.images, dtype=np.bool_)
    positives = len(files.positive_rows)
    if min(positives, files.scores.images) < LEAST_IMAGES:
        why = f"{positives} labelled and {files.scores.images} pool images are too few to train the PU side"
        if asked in PU_SCORES:
            raise EngineError("IMAGES_MISSING", f"{why}.", "Give more images, or choose another score.")
        score, warnings = _content("content", files, teacher, pool)
        return PoolOrder(score=score, name="content", why=why, junk=junk, warnings=warnings)

    views = range(len(files.scores.views))
    labelled_scores, scores = zip(*(_view_scores(files, view, seed, progress) for view in views), strict=True)
    test = sharpest([source_test(v, labelled_scores[v], scores[v]) for v in views])
    alpha = test.prior.alpha if prior is None else prior
    is_open = gate_is_open(test.prior) if prior is None else prior >= GATE_PRIOR
    found = _found(files.scores.views[test.view], test, prior)
    own: Score | None = None
    if asked == "paper":
        folds = _folds(files, files.positive_features, files.pool_features, test.view, seed)
        name, why, score = asked, "it was asked for", paper_scores(folds, alpha, seed, progress)
    elif asked == "pu" or is_open:
        first = labelled_scores[test.view], scores[test.view]
        name, (own, score) = "pu", _believed(files, test.view, *first, alpha, seed=seed, progress=progress)
        why = "it was asked for" if asked == "pu" else f"{found} says that the pool holds the labelled images' source"
    else:
        name, why = "content", f"{found} does not show images of the labelled images' own source in the pool"
        score, warnings = _content(name, files, teacher, pool)
    return PoolOrder(
        score=score, name=name, why=why, prior=alpha, prior_given=prior is not None, evidence=test, junk=junk,
        warnings=warnings, labelled=own,
        interval=None if prior is not None else _interval(labelled_scores[test.view], scores[test.view], seed),
    )  # fmt: skip


def clean_view_scores(files: ScoreFiles, seed: int, progress: Progress) -> tuple[Score, Score]:
    """Out-of-fold scores of the labelled images [P] and of the pool [N] that the clean view's source test reads."""
    return _view_scores(files, CLEAN_VIEW, seed, progress)


def _view_scores(files: ScoreFiles, view: int, seed: int, progress: Progress) -> tuple[Score, Score]:
    return source_scores(_source_folds(files, view, seed), seed, progress)


def _interval(labelled: Score, pool: Score, seed: int) -> PriorInterval:
    generator = np.random.default_rng(seed)
    if pool.size > MOST_RESAMPLED:
        pool = generator.choice(pool, MOST_RESAMPLED, replace=False)
    return prior_interval(labelled, pool, generator)


def _believed(
    files: ScoreFiles, view: int, labelled: Score, pool: Score, alpha: float, *, seed: int, progress: Progress
) -> tuple[Score, Score]:
    """Scores of a second round, in which pool images count as positive by what the first says of them."""
    if alpha < GATE_PRIOR:
        return labelled, pool
    belief = beliefs(pool, min(alpha, MOST_BELIEVED))
    return source_scores(_source_folds(files, view, seed), seed, progress, belief=belief)


def _source_folds(files: ScoreFiles, view: int, seed: int) -> Folds:
    return _folds(
        files,
        lambda view: source_inputs(*files.positive_rows_of(view)),
        lambda view: (source_inputs(*rows) for rows in files.pool_rows(view)),
        view,
        seed,
    )


def _folds(
    files: ScoreFiles,
    positive: Callable[[int], Features],
    pool: Callable[[int], Iterable[Features]],
    view: int,
    seed: int,
) -> Folds:
    return make_folds(positive(view), np.array(files.positive_classes), lambda: pool(view), np.random.default_rng(seed))


def _found(view: str, test: SourceTest, given: float | None) -> str:
    if given is not None:
        return f"the given prior {given:.3f}"
    bound = min(1.0, test.prior.bound)
    told = f"{view} view, in which {test.separated:.1%} of labelled images rank above a pool image"
    return f"the estimated prior {test.prior.alpha:.3f} (upper bound {bound:.3f}; {told})"


def _content(asked: str, files: ScoreFiles, view: TeacherView, pool: Moments) -> tuple[Score, tuple[str, ...]]:
    """E2, or the content score: energy and relative Mahalanobis scores of the clean view, by rank."""
    first, warnings = _energy_or_confidence(view)
    last_tap, all_taps = _relative_scores(files, pool)
    return rank_sum(first, last_tap) if asked == "e2" else content_score(first, last_tap, all_taps), warnings


def _energy_or_confidence(view: TeacherView) -> tuple[Score, tuple[str, ...]]:
    if not view.recovered:
        return view.energy, ()
    warning = "The teacher gives probabilities, so its energy is constant; its confidence was used in place of it."
    return view.probability.astype(np.float64), (warning,)


def _pool_moments(files: ScoreFiles) -> Moments:
    """Of the taps and their spreads, or of the taps alone where both are wide."""
    width = files.positive_rows_of(CLEAN_VIEW)[0].shape[1]
    columns = slice(width if width <= MOST_COLUMNS else files.taps_width)
    return moments(features[:, columns] for features, _ in files.pool_rows(CLEAN_VIEW))


def _relative_scores(files: ScoreFiles, pool: Moments) -> tuple[Score, Score]:
    """Relative Mahalanobis scores of the last tap, and of all taps with their spreads, [N] each."""
    labelled, _ = files.positive_rows_of(CLEAN_VIEW)
    classes, found = np.array(files.positive_classes), []
    for columns in (slice(files.taps_width - files.last_tap_width, files.taps_width), slice(pool.mean.size)):
        near, background = class_gaussians(labelled[:, columns], classes), background_gaussian(_part(pool, columns))
        chunks = (features[:, columns] for features, _ in files.pool_rows(CLEAN_VIEW))
        found.append(np.concatenate([relative_mahalanobis(chunk, near, background) for chunk in chunks]))
    return found[0], found[1]


def _part(pool: Moments, columns: slice) -> Moments:
    return Moments(count=pool.count, mean=pool.mean[columns], covariance=pool.covariance[columns, columns])


def _junk(files: ScoreFiles, pool: Moments) -> NDArray[np.bool_]:
    labelled = files.positive_features(CLEAN_VIEW)
    classes = class_gaussians(labelled, np.array(files.positive_classes))
    background = background_gaussian(_part(pool, slice(files.taps_width)))
    chunks = [(squared_distance(c, classes), squared_distance(c, background)) for c in files.pool_features(CLEAN_VIEW)]
    to_labelled, to_pool = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    return junk_mask(to_labelled, to_pool, float(squared_distance(labelled, classes).max()))
