"""What a teacher wants its input to be: hypotheses, and what the labelled images say of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_engine.agreement import wilson_interval
from pu_engine.errors import EngineError
from pu_engine.graph_surgery import ModelInput, not_a_classifier
from pu_engine.labels import ClassOrder, Scores, best_order, unfitted_accuracy
from pu_engine.preprocessing import model_input
from pu_engine.taps import CHANNELS_FIRST, TO_CHANNELS_FIRST, TO_CHANNELS_LAST
from pu_engine.types import Hypothesis, Preprocessing, StatedPreprocessing

UNIT = 1 / 255
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD, OTHER_CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), (0.2023, 0.1994, 0.2010)
CAFFE_MEAN = (123.68, 116.779, 103.939)
# (scale, mean, std) of value = (pixel * scale - mean) / std, in RGB order. Half-half on 0..1 is the same as -1..1.
Scaling = tuple[float, tuple[float, ...], tuple[float, ...]]
COLOUR_SCALINGS: tuple[Scaling, ...] = (
    (UNIT, (0.0,) * 3, (1.0,) * 3),
    (1.0, (0.0,) * 3, (1.0,) * 3),
    (1 / 127.5, (1.0,) * 3, (1.0,) * 3),
    (UNIT, IMAGENET_MEAN, IMAGENET_STD),
    (UNIT, CIFAR_MEAN, CIFAR_STD),
    (UNIT, CIFAR_MEAN, OTHER_CIFAR_STD),
    (UNIT, IMAGENET_MEAN, (0.225,) * 3),
    (1.0, CAFFE_MEAN, (1.0,) * 3),
    (1.0, (128.0,) * 3, (1.0,) * 3),
)
GRAY_SCALINGS: tuple[Scaling, ...] = (
    (UNIT, (0.0,), (1.0,)),
    (1.0, (0.0,), (1.0,)),
    (1 / 127.5, (1.0,), (1.0,)),
    (UNIT, (0.1307,), (0.3081,)),  # MNIST
    (UNIT, (0.2860,), (0.3530,)),  # Fashion-MNIST
    (1.0, (128.0,), (1.0,)),
    (16 / 255, (0.0,), (1.0,)),  # scikit-learn's digits
)
CHANNEL_ORDERS = ("RGB", "BGR", "GRAY")
# Where the model leaves its size free: small images as they are, larger ones as most networks take them.
LARGEST_NATIVE, USUAL_SIDE = 128, 224
INTEGER_SCALINGS = {"uint8": (1.0, 0.0, 1.0), "int8": (1.0, 128.0, 1.0)}
TEMPERATURES = 2.0 ** np.arange(-6, 15)  # some teachers' logits reach 9000
CHANCE_Z = 2.58
TIE_ERRORS = 2.0  # standard errors of the paired difference
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


def layout(model: Any, source: ModelInput, stated: StatedPreprocessing) -> str:
    """NCHW, NHWC or flat: what the first operators take the input for; its shape only where they do not say.

    Raises:
        EngineError: REQUEST_INVALID where the stated layout or channels can't be.
    """
    possible = ("flat",) if len(source.dims) == 2 else ("NCHW", "NHWC")
    if stated.layout is not None and stated.layout not in possible:
        raise _contradiction("layout", stated.layout, " or ".join(possible))
    if stated.channels is not None and stated.channels not in CHANNEL_ORDERS:
        raise _contradiction("channels", stated.channels, " or ".join(CHANNEL_ORDERS))
    if stated.layout is not None:
        return stated.layout
    if possible == ("flat",):
        return "flat"
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    queue, seen = [source.name], {source.name}
    while queue:
        for node in readers.get(queue.pop(0), []):
            if node.op_type in CHANNELS_FIRST:
                return "NCHW"
            if node.op_type == "Transpose":
                order = tuple(next((a.ints for a in node.attribute if a.name == "perm"), ()))
                if order in (TO_CHANNELS_FIRST, TO_CHANNELS_LAST):
                    return "NHWC" if order == TO_CHANNELS_FIRST else "NCHW"
            if node.op_type in ("Shape", "Size", "MatMul", "Gemm", "Reshape", "Flatten"):
                continue  # behind them axes no longer mean rows, columns and channels
            queue += [name for name in node.output if name not in seen]
            seen.update(node.output)
    return "NHWC" if source.dims[3] in (1, 3) and source.dims[1] not in (1, 3) else "NCHW"


def image_shape(
    source: ModelInput, where: str, stated: StatedPreprocessing, native: tuple[int, int]
) -> tuple[int, int, int]:
    """Height, width and channels that the teacher takes; `native` is the images' own size, for free dimensions.

    Raises:
        EngineError: TEACHER_NOT_A_CLASSIFIER where they are those of no image.
    """
    if where == "flat":
        return _flat_shape(source, stated)
    positions = (2, 3, 1) if where == "NCHW" else (1, 2, 3)
    height, width, channels = (source.dims[p] for p in positions)
    for what, fixed, said in (("height", height, stated.height), ("width", width, stated.width)):
        if fixed and said and fixed != said:
            raise _contradiction(what, said, fixed)
    side = native if native[0] * native[1] <= LARGEST_NATIVE**2 else (USUAL_SIDE, USUAL_SIDE)
    height, width = height or stated.height or side[0], width or stated.width or side[1]
    channels = channels or (1 if stated.channels == "GRAY" else 3)
    if channels not in (1, 3):
        raise not_a_classifier(f"The input {source.name!r} has {channels} channels; 1 or 3 are expected.")
    if stated.channels is not None and (stated.channels == "GRAY") != (channels == 1):
        raise _contradiction("channels", stated.channels, f"{channels} channels")
    return height, width, channels


def _contradiction(what: str, said: object, fixed: object) -> EngineError:
    return EngineError(
        "REQUEST_INVALID",
        f"The stated {what} is {said}, but the teacher takes {fixed}.",
        f"Leave the {what} out, or state the teacher's own.",
        stated=said,
        actual=fixed,
    )


def _flat_shape(source: ModelInput, stated: StatedPreprocessing) -> tuple[int, int, int]:
    size = source.dims[1] or 0
    for channels in (1, 3):
        if (channels == 1) != (stated.channels in (None, "GRAY")) and stated.channels is not None:
            continue
        side = round((size / channels) ** 0.5)
        height, width = stated.height or side, stated.width or side
        if size and height * width * channels == size:
            return height, width, channels
    raise not_a_classifier(f"Rows of {size} values are no square image; state height, width and channels.")


def hypotheses(where: str, dtype: str, shape: tuple[int, int, int], stated: StatedPreprocessing) -> list[Preprocessing]:
    """Every preprocessing that is tried; what the user stated holds in all of them."""
    height, width, channels = shape
    orders = ("GRAY",) if channels == 1 else ("RGB", "BGR")
    if stated.channels is not None:
        orders = (stated.channels,)
    scalings = COLOUR_SCALINGS if channels == 3 else GRAY_SCALINGS
    if dtype in INTEGER_SCALINGS:
        only_scale, only_mean, only_std = INTEGER_SCALINGS[dtype]
        scalings = ((only_scale, (only_mean,) * channels, (only_std,) * channels),)
    found: dict[Preprocessing, None] = {}
    for order in orders:
        for scale, mean, std in scalings:
            reversed_too = (mean[::-1], std[::-1]) if order == "BGR" else (mean, std)
            item = Preprocessing(
                layout=where,
                channels=order,
                scale=scale if stated.scale is None else stated.scale,
                mean=reversed_too[0] if stated.mean is None else _broadcast(stated.mean, channels, "mean"),
                std=reversed_too[1] if stated.std is None else _broadcast(stated.std, channels, "std"),
                dtype=dtype,
                height=height,
                width=width,
            )
            found[item] = None
    return list(found)


def _broadcast(values: tuple[float, ...], channels: int, what: str) -> tuple[float, ...]:
    if len(values) not in (1, channels):
        raise EngineError(
            "REQUEST_INVALID",
            f"The stated {what} has {len(values)} values for {channels} channels.",
            f"State one {what}, or one for each channel.",
        )
    if what == "std" and not all(values):
        raise EngineError("REQUEST_INVALID", "The stated std holds a 0.", "State what pixels are divided by.")
    return values if len(values) == channels else values * channels


def losses(scores: Scores, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """[n] negative log-likelihood of the labels in nats, at the temperature that suits the scores best."""
    shifted = (scores - scores.max(axis=1, keepdims=True))[None] / TEMPERATURES[:, None, None]
    all_losses = np.log(np.exp(shifted).sum(axis=2)) - shifted[:, np.arange(len(index)), index]
    best: NDArray[np.float64] = all_losses[np.argmin(all_losses.mean(axis=1))]
    return best


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

    Raises:
        EngineError: MODEL_NONFINITE or TEACHER_IGNORES_IMAGE where every preprocessing shows it.
    """
    trials, finite, varied = [], 0, 0
    for preprocessing in candidates:
        scores = run(model_input(images, preprocessing)).astype(np.float64)
        if not np.isfinite(scores).all():
            continue
        finite += 1
        varied += bool(np.ptp(scores, axis=0).max() > CONSTANT_SHARE * max(1e-30, np.abs(scores).max()))
        trials.append(_trial(preprocessing, scores, labels, orders))
    if not finite:
        raise EngineError(
            "MODEL_NONFINITE",
            "The teacher's scores are not finite numbers under any preprocessing.",
            "Check the teacher's weights, and export it as float32.",
        )
    if not varied:
        raise EngineError(
            "TEACHER_IGNORES_IMAGE",
            f"The teacher gives the same scores for all of {len(images)} different images.",
            "Check the export: the conversion has probably lost the weights or the input.",
        )
    return sorted(trials, key=lambda trial: trial.nll)


def _trial(preprocessing: Preprocessing, scores: Scores, labels: Sequence[str], orders: Sequence[ClassOrder]) -> Trial:
    order = best_order(scores, labels, orders)
    return Trial(preprocessing=preprocessing, scores=scores, order=order, losses=losses(scores, order.of(labels)))


def table(trials: Sequence[Trial], labels: Sequence[str]) -> tuple[Hypothesis, ...]:
    """The trials as the user gets to see them; agreement is with the first."""
    best = trials[0].scores.argmax(axis=1)
    return tuple(
        Hypothesis(
            preprocessing=t.preprocessing,
            nll=t.nll,
            accuracy=unfitted_accuracy(t.scores, t.order, labels),
            agreement=float((t.scores.argmax(axis=1) == best).mean()),
        )
        for t in trials
    )


def ties(trials: Sequence[Trial]) -> list[Trial]:
    """Trials that the images can't tell from the first: their losses differ by less than two standard errors."""
    first, count = trials[0].losses, len(trials[0].losses)
    tied = []
    for trial in trials[1:]:
        difference = trial.losses - first
        if difference.mean() <= TIE_ERRORS * difference.std() / count**0.5:
            tied.append(trial)
    return tied


def check_above_chance(
    scores: Scores, order: ClassOrder, labels: Sequence[str], rows: Sequence[Hypothesis]
) -> tuple[str, ...]:
    """Refuse a best hypothesis whose predictions might have nothing to do with the labels.

    Chance is the agreement of independent labels and predictions (Cohen 1960): a constant guess never beats it. An
    assigned order is tested on images that it was not fitted to, as a fitted one is right on some of any noise.

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
    raise EngineError(
        "TEACHER_CONVENTION_UNKNOWN",
        f"Under the best of {len(rows)} preprocessings the teacher is right on {right} of {len(labels)} labelled "
        f"images, which guessing could reach.",
        "State the preprocessing (channels, scale, mean, std) and the class names, or check the labels.",
        **{f"hypothesis_{i}": f"{describe(r.preprocessing)}: {r.accuracy:.3f}" for i, r in enumerate(rows)},
    )


def describe(preprocessing: Preprocessing) -> str:
    """One line for warnings and tables."""
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (preprocessing.mean, preprocessing.std))
    return f"{preprocessing.channels} (pixel * {preprocessing.scale:.6g} - [{mean}]) / [{std}]"
