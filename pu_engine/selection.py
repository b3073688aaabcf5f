"""Stage: which pool images the student is trained on.

Score the pool (`pool_order`), decide how many images to take (`default_count`), pick them by a rule (`quota`), and
write `selection.parquet`: a row for each good pool image, in pool order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.picking.class_bounds import ClassBounds, check_room, class_bounds
from pu_engine.picking.look_alikes import excluded_rows, surplus
from pu_engine.picking.pick_estimate import believed, pick_estimate, reliability
from pu_engine.picking.pick_types import PickEstimate
from pu_engine.picking.pick_weights import pick_weights
from pu_engine.picking.pool_order import SCORES, PoolOrder, TeacherView, order_pool, teacher_view
from pu_engine.picking.poor_classes import poor_class_warning, poor_classes
from pu_engine.picking.prior import PriorInterval
from pu_engine.picking.quota import class_quotas, pick_above, pick_balanced, pick_top
from pu_engine.picking.source_test import GATE_PRIOR
from pu_engine.pools.pool import PoolReader, open_pool
from pu_engine.progress import Progress
from pu_engine.results import load
from pu_engine.scores.score_files import ScoreFiles, open_score_files
from pu_engine.training.loop import repeatable
from pu_engine.types import Budget, Selection, SelectionInputs, SelectionOptions, Teacher

FILE, LABELLED_SCORES = "selection.parquet", "labelled.scores.npy"
RULES = ("balanced", "top", "threshold")
ROW_GROUP = 65_536
HIGH_PRIOR = 0.9
# At 144,000 draws a fifth of the pool did as well as all of it, which was seen under four times; with junk in the pool
# a fifth was far better. At 576,000 draws the whole of a pool without junk did as well as its best fifth.
LEAST_SHARE = 0.2
WHOLE_POOL_DRAWS = 720_000
FEWEST_PASSES, MOST_PASSES = 4, 40
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("score", pa.float64()),
        ("class", pa.int32()),  # the teacher's output index, from its mean logits over image and mirror
        ("probability", pa.float32()),  # of that class
        ("weight", pa.float32()),  # how often it is drawn in training; 0 where it is not picked
        ("picked", pa.bool_()),
        ("why", pa.dictionary(pa.int8(), pa.string())),
    ]
)
REASONS = (
    "picked", "below the quota of its class", "below the best", "below the threshold", "junk", "held out", "excluded",
    "looks like a better one",
)  # fmt: skip
PICKED, JUNK, HELD_OUT, EXCLUDED, LOOK_ALIKE = 0, 4, 5, 6, 7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picks:
    """The picked images, [N], and what each class was to give, [K]: nothing but for the balanced rule."""

    picked: NDArray[np.bool_]
    wanted: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Barred:
    """Images that may not be picked, and why, [N] each."""

    held_out: NDArray[np.bool_]
    excluded: NDArray[np.bool_]
    junk: NDArray[np.bool_]
    look_alike: NDArray[np.bool_]

    @property
    def eligible(self) -> NDArray[np.bool_]:
        """All others."""
        return ~(self.held_out | self.excluded | self.junk | self.look_alike)


def run(inputs: SelectionInputs, out: Path, progress: Progress) -> Selection:
    """Score the pool and pick from it.

    Raises:
        EngineError: REQUEST_INVALID for unknown options; POOL_TOO_POOR where fewer images can be picked than
            there are labelled classes; POOL_INVALID, STAGE_PROTOCOL, IMAGES_MISSING for inputs that do not fit.
    """
    check_options(inputs.selection)
    teacher = load(Teacher, inputs.intake.path)
    files = open_score_files(Path(inputs.intake.path), Path(inputs.scoring.path))
    pool = open_pool(inputs.pool)
    keys = pool.keys
    _check_scored(len(keys), files.scores.images)
    classes = len(set(files.positive_classes))
    _check_rich_enough(len(keys), classes, "The pool has")

    view = teacher_view(files)
    options = inputs.selection
    labelled = np.isin(np.arange(teacher.classes), files.positive_classes)
    bounds = class_bounds(options, teacher.class_names, labelled)
    # One thread gives the same sums on every machine, and is the fastest on layers as small as the PU side's.
    with repeatable(threads=1):
        order = order_pool(files, view, options, inputs.seed, progress)
    draws = training_draws(inputs)
    default = max(default_count(len(keys), draws), classes)
    barred = barred_images(order, options, pool, files)
    whole = keeps_all(order, options, draws)
    picks = pick(
        order, view, options, eligible=barred.eligible, labelled=labelled, bounds=bounds, default=default,
        seed=inputs.seed, whole=whole,
    )  # fmt: skip
    _check_rich_enough(int(picks.picked.sum()), classes, "Selection picks")

    reason = reasons(picks.picked, barred, options.rule)
    probability = believed(order.score, order.prior) if whole and order.prior is not None else None
    write_selection(out / FILE, keys, order, view, weights=pick_weights(probability, picks.picked), reason=reason)
    if order.labelled is not None:
        np.save(out / LABELLED_SCORES, order.labelled)
    poor = poor_classes(picks.wanted, view.classes, files.pool_logits(), keys=keys, names=teacher.class_names)
    warnings = [
        *order.warnings,
        *barred_warnings(barred),
        *prior_warnings(order),
        *poor_class_warning(poor),
    ]
    for warning in warnings:
        progress.warn(warning)
    found = _selection(order, picks, view, teacher, tuple(warnings))
    alike, excluded = int(barred.look_alike.sum()), int(barred.excluded.sum())
    return replace(found, poor_classes=poor, look_alikes=alike, excluded=excluded)


def _selection(
    order: PoolOrder, picks: Picks, view: TeacherView, teacher: Teacher, warnings: tuple[str, ...]
) -> Selection:
    """What the stage found, for the stages after it and the report."""
    picked = picks.picked
    return Selection(
        pool_images=picked.size,
        picked=int(picked.sum()),
        score=order.name,
        why=order.why,
        prior=order.prior,
        prior_given=order.prior_given,
        threshold=float(order.score[picked].min()),
        class_counts=tuple(np.bincount(view.classes[picked], minlength=teacher.classes).tolist()),
        class_available=tuple(np.bincount(view.classes, minlength=teacher.classes).tolist()),
        prior_bound=order.evidence.prior.bound if order.evidence else None,
        prior_low=order.interval.low if order.interval else None,
        prior_high=order.interval.high if order.interval else None,
        expected=expected_precision(order, picked),
        reliability=reliability(order.labelled, order.score, order.prior or 0.0) if order.labelled is not None else (),
        separated=order.evidence.separated if order.evidence else None,
        warnings=warnings,
    )


def training_draws(inputs: SelectionInputs) -> int:
    """How many times the training will draw a picked image."""
    steps = load(Budget, inputs.budget.path).steps if inputs.budget else inputs.steps
    return int(steps * inputs.batch_size * (1.0 - inputs.labelled_share))


def default_count(pool_images: int, draws: int) -> int:
    """How many images to pick when the user does not say: a fifth of the pool, and more of it for long trainings.

    draws = steps x batch size x (1 - labelled share) pool images are drawn in training. The share grows with them
    past 144,000 draws and reaches the whole pool at 720,000; but training draws a picked image 4 to 40 times. At
    1,500 steps of 128 (a quarter labelled) that gives 3,600 of 10,000 images, 8,000 of 40,000 and 36,000 of
    1,000,000; at 6,000 steps 32,000 of 40,000.
    """
    wanted = pool_images * max(LEAST_SHARE, draws / WHOLE_POOL_DRAWS)
    bounded = min(max(wanted, draws / MOST_PASSES), draws / FEWEST_PASSES)
    return max(1, min(pool_images, round(bounded)))


def keeps_all(order: PoolOrder, options: SelectionOptions, draws: int) -> bool:
    """Whether the whole pool is trained on, drawn by the PU side's probability: for long trainings, where the user
    leaves rule and count to Punnet and the pool holds the labelled images' own source.
    """
    left_open = options.count is None and options.rule == "balanced"
    left_open = left_open and not (options.class_floors or options.class_caps)
    return left_open and order.name == "pu" and draws > LEAST_SHARE * WHOLE_POOL_DRAWS


def barred_images(order: PoolOrder, options: SelectionOptions, pool: PoolReader, files: ScoreFiles) -> Barred:
    """What may not be picked: junk, the user's held-out and excluded images, and worse images of look-alikes."""
    nothing = np.zeros_like(order.junk)
    held_out = pool.holds(files.held_out_digests)
    excluded = excluded_rows(options.excluded, pool) if options.excluded else nothing
    others = Barred(held_out=held_out, excluded=excluded, junk=order.junk, look_alike=nothing)
    alike = nothing if options.keep_look_alikes else surplus(pool.leaders(), order.score, others.eligible)
    return replace(others, look_alike=alike)


def pick(
    order: PoolOrder,
    view: TeacherView,
    options: SelectionOptions,
    *,
    eligible: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    bounds: ClassBounds,
    default: int,
    seed: int,
    whole: bool = False,
) -> Picks:
    """Apply the rule to the order.

    Args:
        eligible: images that may be picked, [N].
        labelled: outputs of the teacher that have labelled images, [K].
        bounds: floors and caps of the balanced rule.
        default: images to pick where the options name no count; the threshold rule then takes all above it.
        whole: take all that may be picked.
    """
    unasked = np.zeros(labelled.size, dtype=np.int64)
    if whole:
        return Picks(picked=eligible, wanted=unasked)
    if options.rule == "threshold":
        quantile = 0.0 if options.threshold is None else options.threshold
        above = pick_above(order.score, quantile, eligible)
        return Picks(
            picked=above if options.count is None else pick_top(order.score, options.count, above), wanted=unasked
        )
    count = default if options.count is None else options.count
    if options.rule == "top":
        return Picks(picked=pick_top(order.score, count, eligible), wanted=unasked)
    available = np.bincount(view.classes[eligible], minlength=labelled.size)
    check_room(bounds, available, count)
    quotas = class_quotas(available, labelled, count, seed, floors=bounds.floors, caps=bounds.caps)
    share = np.clip(count // int(labelled.sum()), bounds.floors, bounds.caps)
    return Picks(picked=pick_balanced(order.score, view.classes, quotas, eligible), wanted=np.where(labelled, share, 0))


def check_options(options: SelectionOptions) -> None:
    """Refuse what no rule or score can mean."""
    problems = [
        (options.score not in SCORES, f"selection.score is {options.score!r}", f"Choose from {', '.join(SCORES)}."),
        (options.rule not in RULES, f"selection.rule is {options.rule!r}", f"Choose from {', '.join(RULES)}."),
        (
            options.count is not None and options.count < 1,
            f"selection.count is {options.count}",
            "Give at least 1, or leave it out.",
        ),
        (
            options.threshold is not None and not 0.0 <= options.threshold <= 1.0,
            f"selection.threshold is {options.threshold}",
            "It is a quantile of the score, 0 to 1.",
        ),
        (
            options.rule == "threshold" and options.threshold is None,
            "selection.rule is 'threshold', but selection.threshold is missing",
            "Give a quantile of the score, 0 to 1.",
        ),
        (
            options.prior is not None and not 0.0 < options.prior < 1.0,
            f"selection.prior is {options.prior}",
            "It is a share of the pool between 0 and 1, both excluded; leave it out to have it estimated.",
        ),
    ]
    for wrong, message, remedy in problems:
        if wrong:
            raise EngineError("REQUEST_INVALID", f"{message}.", remedy)


def reasons(picked: NDArray[np.bool_], barred: Barred, rule: str) -> NDArray[np.int8]:
    """Why each image was picked or not, as an index into REASONS, [N]."""
    missed = {"balanced": 1, "top": 2, "threshold": 3}[rule]
    cases = [picked, barred.held_out, barred.excluded, barred.junk, barred.look_alike]
    return np.select(cases, [PICKED, HELD_OUT, EXCLUDED, JUNK, LOOK_ALIKE], missed).astype(np.int8)


def write_selection(
    path: Path, keys: Sequence[str], order: PoolOrder, view: TeacherView, *, weights: NDArray[np.float32],
    reason: NDArray[np.int8],
) -> None:  # fmt: skip
    """Write `selection.parquet`, a row group at a time; equal inputs give equal bytes."""
    picked = reason == PICKED
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for start in range(0, len(keys), ROW_GROUP):
            part = slice(start, start + ROW_GROUP)
            columns = [
                pa.array(keys[part], pa.string()),
                pa.array(order.score[part]),
                pa.array(view.classes[part]),
                pa.array(view.probability[part]),
                pa.array(weights[part]),
                pa.array(picked[part]),
                pa.DictionaryArray.from_arrays(pa.array(reason[part]), pa.array(REASONS)),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))


def barred_warnings(barred: Barred) -> list[str]:
    """That the pool holds images which something is measured on."""
    held_out, excluded = int(barred.held_out.sum()), int(barred.excluded.sum())
    found = []
    if held_out:
        found.append(f"{held_out} pool images are held-out labelled images, byte for byte; they are never picked.")
    if excluded:
        found.append(f"{excluded} pool images are, or look like, images to exclude; they are never picked.")
    return found


def prior_warnings(order: PoolOrder) -> list[str]:
    """What an extreme prior says of the pool."""
    if order.prior is not None and order.prior < GATE_PRIOR:
        consequence = "A pool closer to what the student will see would help more than any selection."
        return [
            f"The prior is {order.prior:.3f}: hardly any pool image is of the labelled images' source. {consequence}"
        ]
    if order.prior is not None and order.prior > HIGH_PRIOR:
        return [f"The prior is {order.prior:.2f}: nearly the whole pool is of the labelled images' source."]
    return []


def _check_scored(images: int, scored: int) -> None:
    if images != scored:
        raise EngineError(
            "STAGE_PROTOCOL",
            f"The pool has {images} good images, its scores {scored}.",
            "Run the job again from scoring.",
        )


def expected_precision(order: PoolOrder, picked: NDArray[np.bool_]) -> PickEstimate | None:
    """What the picks are expected to hold, where the pool was ordered by the source classifier."""
    if order.labelled is None or order.prior is None:
        return None
    interval = order.interval or PriorInterval(low=order.prior, high=order.prior)
    return pick_estimate(order.labelled, order.score, picked, order.prior, interval)


def _check_rich_enough(images: int, classes: int, what: str) -> None:
    if images < classes:
        raise EngineError(
            "POOL_TOO_POOR",
            f"{what} {images} images; at least one for each of the {classes} labelled classes is needed.",
            "Use a larger pool, or ask for more images (selection.count, selection.threshold).",
            images=images,
            limit=classes,
        )
