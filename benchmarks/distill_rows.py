"""The rows that the distillation benchmark compares: how images are picked, and how the student is trained on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.distill_images import ORIGINALS, Asked, Chosen, chosen_rows
from benchmarks.selection_scores import DrawnPool
from pu_engine.picking.class_bounds import class_bounds
from pu_engine.picking.pick_estimate import believed
from pu_engine.picking.pick_weights import pick_weights
from pu_engine.picking.pool_order import PoolOrder, TeacherView, order_pool, teacher_view
from pu_engine.picking.quota import random_score
from pu_engine.progress import SilentProgress
from pu_engine.selection import check_options, default_count, keeps_all, pick
from pu_engine.training.distill_types import DistillationOptions, DistillLoss
from pu_engine.training.loop import repeatable
from pu_engine.types import SelectionOptions

# The published distillation: 1/count weights with noise, KL at T = 1, one labelled image in nine, no labels; its step
# schedule was made for 200 epochs, so it gets the cosine here.
PAPER_LOSS = DistillLoss(kl=1.0, labels=0.0, temperature=1.0)
# DFND: the teacher's most confident images, KL and the teacher's answers through a learned confusion.
DFND_LOSS = DistillLoss(kl=1.0, noisy_labels=1.0, labels=0.0)
LABELS_ALONE = DistillLoss(kl=0.0, labels=1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picking:
    """What a row picks from: the pool of a seed, the count, and the training's own options."""

    asked: Asked
    pool: DrawnPool
    count: int
    seed: int
    options: DistillationOptions
    steps: int


Pick = Callable[[Picking], Chosen]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table."""

    name: str
    pick: Pick
    change: Callable[[DistillationOptions], DistillationOptions] = lambda options: options
    picked_as: str = ""  # another row with the same picks


def by_score(score: str, rule: str) -> Pick:
    """The engine's own selection with a score and a rule, at the row's count."""

    def picked(of: Picking) -> Chosen:
        return _selected(of, SelectionOptions(score=score, rule=rule, count=of.count))

    return picked


def nothing(of: Picking) -> Chosen:
    """No picked image."""
    return chosen_rows(of.pool, np.zeros(0, np.int64))


def oracle(of: Picking) -> Chosen:
    """Images that are right to pick, at most the count, by the truth: an upper bound, not a method."""
    right = np.flatnonzero(of.pool.right)
    return chosen_rows(of.pool, _some(right, of.count, of.seed))


def whole_pool(of: Picking) -> Chosen:
    """Every image of the pool."""
    return chosen_rows(of.pool, np.arange(len(of.pool.right)))


def default(of: Picking) -> Chosen:
    """What Punnet does by itself: the count by the budget, and for long trainings the whole pool by weight."""
    draws = int(of.steps * of.options.batch_size * (1.0 - of.options.labelled_share))
    count = max(of.count, default_count(len(of.pool.right), draws))
    return _selected(of, SelectionOptions(), default=count, draws=draws)


def half_and_half(of: Picking) -> Chosen:
    """Half of the count by the default's score, half at random, both with the quota."""
    view = teacher_view(of.pool.files)
    chosen = _mask(of, view, SelectionOptions(count=of.count // 2))
    rest = _mask(of, view, SelectionOptions(score="random", count=of.count - of.count // 2), eligible=~chosen)
    return chosen_rows(of.pool, np.flatnonzero(chosen | rest))


def originals(of: Picking) -> Chosen:
    """Images of the teacher's own training set, as many as were scored: the upper bound."""
    rows = np.arange(len(of.asked.scored[ORIGINALS].logits))
    return Chosen(sources=(ORIGINALS,), origin=np.stack([np.zeros_like(rows), rows], axis=1))


def paper(options: DistillationOptions) -> DistillationOptions:
    """The published recipe, whatever the others are trained by."""
    plain = DistillationOptions(batch_size=options.batch_size)
    return replace(plain, loss=PAPER_LOSS, labelled_share=0.11, class_weights="paper", draws="uniform")


def paper_tuned(options: DistillationOptions) -> DistillationOptions:
    """The published weights in a recipe that got the same effort as the default."""
    return replace(options, class_weights="paper")


ROWS = {
    row.name: row
    for row in (
        Row(name="labelled only", pick=nothing),
        Row(name="labels without a teacher", pick=nothing, change=lambda o: replace(o, loss=LABELS_ALONE),
            picked_as="labelled only"),
        Row(name="random", pick=by_score("random", "top")),
        Row(name="random, balanced", pick=by_score("random", "balanced")),
        Row(name="half random, half selected", pick=half_and_half),
        Row(name="confidence, DFND's loss", pick=by_score("confidence", "top"),
            change=lambda o: replace(o, loss=DFND_LOSS)),
        Row(name="energy", pick=by_score("energy", "top")),
        Row(name="PU without quota", pick=by_score("pu", "top")),
        Row(name="paper", pick=by_score("paper", "top"), change=paper),
        Row(name="paper, tuned", pick=by_score("paper", "top"), change=paper_tuned, picked_as="paper"),
        Row(name="default", pick=default),
        Row(name="oracle", pick=oracle),
        Row(name="whole pool", pick=whole_pool),
        Row(name="originals", pick=originals),
    )
}  # fmt: skip


def _selected(of: Picking, options: SelectionOptions, *, default: int = 1, draws: int = 0) -> Chosen:
    check_options(options)
    view = teacher_view(of.pool.files)
    with repeatable(threads=1):
        order = order_pool(of.pool.files, view, options, of.seed, SilentProgress())
    weighted = keeps_all(order, options, draws)
    eligible = ~order.junk
    mask = eligible if weighted else _picked(of, view, order, options, eligible=eligible, default=default)
    weights = pick_weights(believed(order.score, order.prior), mask) if weighted and order.prior is not None else None
    return chosen_rows(of.pool, np.flatnonzero(mask), weights)


def _mask(
    of: Picking, view: TeacherView, options: SelectionOptions, eligible: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    with repeatable(threads=1):
        order = order_pool(of.pool.files, view, options, of.seed, SilentProgress())
    allowed = ~order.junk if eligible is None else eligible
    return _picked(of, view, order, options, eligible=allowed)


def _picked(
    of: Picking, view: TeacherView, order: PoolOrder, options: SelectionOptions, *, eligible: NDArray[np.bool_],
    default: int = 1,
) -> NDArray[np.bool_]:  # fmt: skip
    labelled = np.isin(np.arange(of.asked.teacher.classes), of.pool.files.positive_classes)
    bounds = class_bounds(options, of.asked.teacher.class_names, labelled)
    picks = pick(
        order, view, options, eligible=eligible, labelled=labelled, bounds=bounds, default=default, seed=of.seed
    )
    return picks.picked


def _some(rows: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    order = np.argsort(random_score(len(rows), seed))
    return np.sort(rows[order[:count]])
