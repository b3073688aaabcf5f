"""What labelled images say of each preprocessing that a teacher might want."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.imaging.preprocessing import model_input
from pu_engine.teacher.conventions import describe, name, rarity
from pu_engine.teacher.labels import ClassOrder, Scores, best_order, unfitted_accuracy
from pu_engine.types import Hypothesis, Preprocessing
from pu_engine.variants.agreement import wilson_interval

OCTAVES = np.arange(-6, 15)  # of the temperature: some teachers' logits reach 9000
FINE_STEPS = np.linspace(-1, 1, 17)  # octaves around the best
CHANCE_Z = 2.58
TIE_ERRORS = 2.0  # standard errors of the paired difference
COSTLY_TIE = 0.03  # of accuracy
CONSTANT_SHARE = 1e-6

Run = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One preprocessing with what the teacher said under it."""

    preprocessing: Preprocessing
    scores: Scores  # [n, K]
    order: ClassOrder
    losses: NDArray[np.float64]  # [n] nats, at the best temperature

    @property
    def nll(self) -> float:
        return float(self.losses.mean())

    @property
    def cost(self) -> float:
        """What trials are ranked by, nats: the negative log-likelihood of labels, preprocessing and class order."""
        return float(self.losses.sum()) + rarity(self.preprocessing) + order_rarity(self.order, self.scores.shape[1])


def order_rarity(order: ClassOrder, classes: int) -> float:
    """Nats that count against an order which was fitted to the images: it is one of all that there are.

    Without it an order that swaps two classes undoes BGR for RGB, where colour is what tells them apart.
    """
    if order.source != "assigned":
        return 0.0
    return math.lgamma(classes + 1) - math.lgamma(classes - len(order.index) + 1)


def losses(scores: Scores, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] negative log-likelihood of the labels in nats, at the temperature that suits the scores best.

    Without it a preprocessing that only makes the logits smaller would rank above its equals.
    """
    coarse = _losses_at(scores, index, 2.0**OCTAVES)
    best = OCTAVES[np.argmin(coarse.mean(axis=1))]
    fine = _losses_at(scores, index, 2.0 ** (best + FINE_STEPS))
    found: NDArray[np.float64] = fine[np.argmin(fine.mean(axis=1))]
    return found


def _losses_at(
    scores: Scores, index: NDArray[np.int64], temperatures: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """[temperatures, n]."""
    shifted = scores - scores.max(axis=1, keepdims=True)
    rows = np.arange(len(index))
    return np.stack([np.log(np.exp(shifted / t).sum(axis=1)) - shifted[rows, index] / t for t in temperatures])


def try_all(
    run: Run,
    images: NDArray[np.uint8],
    labels: Sequence[str],
    candidates: Sequence[Preprocessing],
    orders: Sequence[ClassOrder],
) -> list[Trial]:
    """Trials of the preprocessings, most likely first; those with scores that are not finite are left out.

    Args:
        run: model input -> [n, K] logits. images: [n, H, W, C] uint8. orders: `labels.candidate_orders`.
    """
    found = []
    for preprocessing in candidates:
        scores = run(model_input(images, preprocessing)).astype(np.float64)
        if np.isfinite(scores).all():
            found.append(_trial(preprocessing, scores, labels, orders))
    return sorted(found, key=lambda trial: trial.cost)


def check_usable(trials: Sequence[Trial]) -> None:
    """Refuse a teacher that has no finite scores under any preprocessing, or the same scores for all images.

    Raises:
        EngineError: MODEL_NONFINITE, TEACHER_IGNORES_IMAGE.
    """
    if not trials:
        raise EngineError(
            "MODEL_NONFINITE",
            "The teacher's scores are not finite numbers under any preprocessing.",
            "Check the teacher's weights, and export it as float32.",
        )
    if not any(_varies(trial.scores) for trial in trials):
        raise EngineError(
            "TEACHER_IGNORES_IMAGE",
            f"The teacher gives the same scores for all of {len(trials[0].scores)} different images.",
            "Check the export: the conversion has probably lost the weights or the input.",
        )


def _varies(scores: Scores) -> bool:
    return bool(np.ptp(scores, axis=0).max() > CONSTANT_SHARE * max(1e-30, np.abs(scores).max()))


def _trial(preprocessing: Preprocessing, scores: Scores, labels: Sequence[str], orders: Sequence[ClassOrder]) -> Trial:
    order = best_order(scores, labels, orders)
    return Trial(preprocessing=preprocessing, scores=scores, order=order, losses=losses(scores, order.of(labels)))


def table(trials: Sequence[Trial], labels: Sequence[str]) -> tuple[Hypothesis, ...]:
    """The trials as the user gets to see them; agreement and ties are with the first."""
    best = trials[0].scores.argmax(axis=1)
    tied = {id(trial) for trial in ties(trials)}
    rows = []
    for trial in trials:
        accuracy = unfitted_accuracy(trial.scores, trial.order, labels)
        low, high = wilson_interval(accuracy, len(labels))
        rows.append(
            Hypothesis(
                name=name(trial.preprocessing),
                preprocessing=trial.preprocessing,
                nll=trial.nll,
                accuracy=accuracy,
                accuracy_low=low,
                accuracy_high=high,
                agreement=float((trial.scores.argmax(axis=1) == best).mean()),
                tied=id(trial) in tied,
            )
        )
    return tuple(rows)


def significantly_better(a: Trial, b: Trial) -> bool:
    """Whether the losses of `a` are lower than those of `b` by more than two standard errors of the difference."""
    difference = b.losses - a.losses
    return bool(difference.mean() > TIE_ERRORS * difference.std() / len(difference) ** 0.5)


def ties(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that the images can't tell from the first."""
    return [trial for trial in trials[1:] if not significantly_better(trials[0], trial)]


def check_costly_ties(trials: Sequence[Trial], labels: Sequence[str]) -> None:
    """Refuse to choose by likelihood where a tied preprocessing is right on clearly more images.

    Clearly: by more than 3 points beyond one standard error of the paired difference; with few images a difference
    of 3 points is chance.

    Raises:
        EngineError: TEACHER_CONVENTION_UNKNOWN, naming both.
    """
    first = trials[0]
    right = first.scores.argmax(axis=1) == first.order.of(labels)
    for tied in ties(trials):
        gain = (tied.scores.argmax(axis=1) == tied.order.of(labels)).astype(np.float64) - right
        if gain.mean() - gain.std() / len(gain) ** 0.5 > COSTLY_TIE:
            raise EngineError(
                "TEACHER_CONVENTION_UNKNOWN",
                f"{len(labels)} labelled images can't tell {describe(first.preprocessing)} from "
                f"{describe(tied.preprocessing)}: the first is more likely, the second is right on "
                f"{gain.mean():.1%} more of them.",
                "State the preprocessing (channels, scale, mean, std), or give more labelled images.",
                first=describe(first.preprocessing),
                second=describe(tied.preprocessing),
            )


def check_above_chance(
    scores: Scores,
    order: ClassOrder,
    labels: Sequence[str],
    rows: Sequence[Hypothesis],
    *,
    better: Preprocessing | None = None,
) -> tuple[str, ...]:
    """Refuse a best hypothesis whose predictions might have nothing to do with the labels.

    Chance is the agreement of independent labels and predictions (Cohen 1960): a constant guess never beats it. An
    assigned order is tested on images that it was not fitted to, as a fitted one is right on some of any noise.

    Args:
        better: what suits the images where the user's statement doesn't.

    Returns:
        A warning where all images are right, but so few that chance could do it: they can't say more.

    Raises:
        EngineError: TEACHER_CONVENTION_UNKNOWN with the table of hypotheses.
    """
    index, predicted = order.of(labels), scores.argmax(axis=1)
    right = round(unfitted_accuracy(scores, order, labels) * len(labels))
    shares = [np.bincount(values, minlength=scores.shape[1]) / len(labels) for values in (index, predicted)]
    chance = float(shares[0] @ shares[1])
    if wilson_interval(right / len(labels), len(labels), CHANCE_Z)[0] > chance:
        return ()
    if right == len(labels):
        return (f"The teacher is right on all of {right} labelled images; that few could be chance. Give more images.",)
    if better is not None:
        raise EngineError(
            "TEACHER_CONVENTION_UNKNOWN",
            f"Under the stated preprocessing the teacher is right on {right} of {len(labels)} labelled images, which "
            f"guessing could reach; {describe(better)} suits them better.",
            "Leave the statement out, or correct it.",
            better=describe(better),
        )
    raise EngineError(
        "TEACHER_CONVENTION_UNKNOWN",
        f"Under the best of {len(rows)} preprocessings the teacher is right on {right} of {len(labels)} labelled "
        f"images, which guessing could reach.",
        "State the preprocessing (channels, scale, mean, std) and the class names, or check the labels.",
        **{f"hypothesis_{i}": f"{describe(r.preprocessing)}: {r.accuracy:.3f}" for i, r in enumerate(rows)},
    )
