"""Stage: which pool images the student is trained on.

Score the pool (`pool_order`), decide how many images to take (`default_count`), pick them by a rule (`quota`), and
write `selection.parquet`: a row for each good pool image, in pool order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.pick_estimate import believed, pick_estimate
from pu_engine.pick_types import PickEstimate
from pu_engine.pick_weights import pick_weights
from pu_engine.pool import open_pool
from pu_engine.pool_order import SCORES, PoolOrder, TeacherView, order_pool, teacher_view
from pu_engine.prior import PriorInterval
from pu_engine.progress import Progress
from pu_engine.quota import class_quotas, pick_above, pick_balanced, pick_top
from pu_engine.results import load
from pu_engine.score_files import ScoreFiles, open_score_files
from pu_engine.source_test import GATE_PRIOR
from pu_engine.training import repeatable
from pu_engine.types import Budget, Selection, SelectionInputs, SelectionOptions, Teacher

FILE = "selection.parquet"
RULES = ("balanced", "top", "threshold")
ROW_GROUP = 65_536
HIGH_PRIOR = 0.9
NAMED_CLASSES = 8
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
REASONS = ("picked", "below the quota of its class", "below the best", "below the threshold", "junk", "held out")
PICKED, JUNK, HELD_OUT = 0, 4, 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picks:
    """The picked images, [N], and what each class was to give, [K] (balanced rule only)."""

    picked: NDArray[np.bool_]
    fair_share: float | None


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
    # One thread gives the same sums on every machine, and is the fastest on layers as small as the PU side's.
    with repeatable(threads=1):
        order = order_pool(files, view, options, inputs.seed, progress)
    draws = training_draws(inputs)
    held_out = pool.holds(files.held_out_digests)
    eligible = ~(order.junk | held_out)
    default = max(default_count(len(keys), draws), classes)
    labelled = np.isin(np.arange(teacher.classes), files.positive_classes)
    whole = keeps_all(order, options, draws)
    picks = pick(
        order, view, options, eligible=eligible, labelled=labelled, default=default, seed=inputs.seed, whole=whole
    )
    _check_rich_enough(int(picks.picked.sum()), classes, "Selection picks")

    reason = reasons(order, picks.picked, held_out, options.rule)
    probability = believed(order.score, order.prior) if whole and order.prior is not None else None
    write_selection(out / FILE, keys, order, view, weights=pick_weights(probability, picks.picked), reason=reason)
    warnings = [
        *order.warnings,
        *held_out_warnings(held_out),
        *prior_warnings(order),
        *class_warnings(picks, view, files, teacher),
    ]
    for warning in warnings:
        progress.warn(warning)
    return _selection(order, picks, view, teacher, tuple(warnings))


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
        expected=_expected(order, picked),
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
    return left_open and order.name == "pu" and draws > LEAST_SHARE * WHOLE_POOL_DRAWS


def pick(
    order: PoolOrder,
    view: TeacherView,
    options: SelectionOptions,
    *,
    eligible: NDArray[np.bool_],
    labelled: NDArray[np.bool_],
    default: int,
    seed: int,
    whole: bool = False,
) -> Picks:
    """Apply the rule to the order.

    Args:
        eligible: images that may be picked, [N].
        labelled: outputs of the teacher that have labelled images, [K].
        default: images to pick where the options name no count; the threshold rule then takes all above it.
        whole: take all that may be picked.
    """
    if whole:
        return Picks(picked=eligible, fair_share=None)
    if options.rule == "threshold":
        quantile = 0.0 if options.threshold is None else options.threshold
        above = pick_above(order.score, quantile, eligible)
        return Picks(
            picked=above if options.count is None else pick_top(order.score, options.count, above), fair_share=None
        )
    count = default if options.count is None else options.count
    if options.rule == "top":
        return Picks(picked=pick_top(order.score, count, eligible), fair_share=None)
    available = np.bincount(view.classes[eligible], minlength=labelled.size)
    quotas = class_quotas(available, labelled, count, seed)
    picked = pick_balanced(order.score, view.classes, quotas, eligible)
    return Picks(picked=picked, fair_share=count / int(labelled.sum()))


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


def reasons(order: PoolOrder, picked: NDArray[np.bool_], held_out: NDArray[np.bool_], rule: str) -> NDArray[np.int8]:
    """Why each image was picked or not, as an index into REASONS, [N]."""
    missed = {"balanced": 1, "top": 2, "threshold": 3}[rule]
    return np.select([picked, held_out, order.junk], [PICKED, HELD_OUT, JUNK], missed).astype(np.int8)


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


def held_out_warnings(held_out: NDArray[np.bool_]) -> list[str]:
    """That the pool holds images which the verdict is measured on."""
    count = int(held_out.sum())
    return [f"{count} pool images are held-out labelled images, byte for byte; they are never picked."] if count else []


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


def class_warnings(picks: Picks, view: TeacherView, files: ScoreFiles, teacher: Teacher) -> list[str]:
    """One warning that names the labelled classes of which the pool has less than an equal share."""
    if picks.fair_share is None:
        return []
    share = int(picks.fair_share)
    available = np.bincount(view.classes, minlength=teacher.classes)
    labelled = sorted(set(files.positive_classes), key=lambda k: (available[k], k))
    poor = [k for k in labelled if available[k] < share]
    if not poor:
        return []
    named = ", ".join(f"{teacher.class_names[k]} ({available[k]})" for k in poor[:NAMED_CLASSES])
    rest = f" and {len(poor) - NAMED_CLASSES} more" if len(poor) > NAMED_CLASSES else ""
    return [f"The teacher finds too few pool images for an equal share of {share} a class: {named}{rest}."]


def _check_scored(images: int, scored: int) -> None:
    if images != scored:
        raise EngineError(
            "STAGE_PROTOCOL",
            f"The pool has {images} good images, its scores {scored}.",
            "Run the job again from scoring.",
        )


def _expected(order: PoolOrder, picked: NDArray[np.bool_]) -> PickEstimate | None:
    """What the picks are expected to hold, where the pool was ordered by the source classifier."""
    if order.name != "pu" or order.prior is None:
        return None
    interval = order.interval or PriorInterval(low=order.prior, high=order.prior)
    return pick_estimate(order.score, picked, order.prior, interval)


def _check_rich_enough(images: int, classes: int, what: str) -> None:
    if images < classes:
        raise EngineError(
            "POOL_TOO_POOR",
            f"{what} {images} images; at least one for each of the {classes} labelled classes is needed.",
            "Use a larger pool, or ask for more images (selection.count, selection.threshold).",
            images=images,
            limit=classes,
        )
