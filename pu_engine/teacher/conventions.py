"""What a teacher wants its input to be: layout and size by its graph, scalings as hypotheses."""

from __future__ import annotations

from typing import Any

from pu_engine.errors import EngineError
from pu_engine.teacher import scalings
from pu_engine.teacher.graph_surgery import ModelInput, not_a_classifier
from pu_engine.teacher.taps import CHANNELS_FIRST, TO_CHANNELS_FIRST, TO_CHANNELS_LAST
from pu_engine.types import Preprocessing, StatedPreprocessing

CHANNEL_ORDERS = ("RGB", "BGR", "GRAY")
FITS = ("stretch", "crop")
# Where the model leaves its size free: small images as they are, larger ones as most networks take them.
LARGEST_NATIVE, USUAL_SIDE = 128, 224


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


def hypotheses(
    where: str, dtype: str, shape: tuple[int, int, int], stated: StatedPreprocessing
) -> list[tuple[Preprocessing, ...]]:
    """Every preprocessing that is tried, in families of near relatives; what the user stated holds in all of them.

    Raises:
        EngineError: REQUEST_INVALID for a statement that can't be.
    """
    height, width, channels = shape
    orders = ("GRAY",) if channels == 1 else ("RGB", "BGR")
    if stated.channels is not None:
        orders = (stated.channels,)
    if stated.fit is not None and stated.fit not in FITS:
        raise _contradiction("fit", stated.fit, " or ".join(FITS))
    found: dict[Preprocessing, None] = {}
    families = []
    for order in orders:
        for family in scalings.families(dtype, channels):
            members = []
            for scaling in family:
                ordered = scaling.in_order(order)
                item = Preprocessing(
                    layout=where,
                    channels=order,
                    scale=scaling.scale if stated.scale is None else stated.scale,
                    mean=ordered.mean if stated.mean is None else _broadcast(stated.mean, channels, "mean"),
                    std=ordered.std if stated.std is None else _broadcast(stated.std, channels, "std"),
                    dtype=dtype,
                    height=height,
                    width=width,
                    fit=stated.fit or FITS[0],
                )
                if item not in found:
                    found[item] = None
                    members.append(item)
            if members:
                families.append(tuple(members))
    return families


def is_stated(stated: StatedPreprocessing) -> bool:
    """Whether the user said anything that the images could contradict."""
    return any(v is not None for v in (stated.channels, stated.scale, stated.mean, stated.std, stated.fit))


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


def describe(preprocessing: Preprocessing) -> str:
    """One line for warnings and tables."""
    mean, std = (", ".join(f"{v:g}" for v in values) for values in (preprocessing.mean, preprocessing.std))
    crop = ", centre crop" if preprocessing.fit == "crop" else ""
    return f"{preprocessing.channels} (pixel * {preprocessing.scale:.6g} - [{mean}]) / [{std}]{crop}"


def name(preprocessing: Preprocessing) -> str:
    """The short name of a preprocessing: channel order, scaling, and the crop where there is one."""
    crop = ", crop" if preprocessing.fit == "crop" else ""
    return f"{preprocessing.channels} {scaling_name(preprocessing)}{crop}"


def scaling_name(preprocessing: Preprocessing) -> str:
    """The scaling's name without the channel order."""
    scaling = _published(preprocessing)
    return scaling.name if scaling else "as stated"


def rarity(preprocessing: Preprocessing) -> float:
    """Nats that count against a preprocessing where images leave a choice open; see `scalings.rarity`."""
    scaling = _published(preprocessing)
    return scalings.rarity(scaling, preprocessing.channels) if scaling else 0.0


def _published(preprocessing: Preprocessing) -> scalings.Scaling | None:
    return scalings.find(preprocessing.scale, preprocessing.mean, preprocessing.std, preprocessing.channels)
