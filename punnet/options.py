"""What a user states about a compression, as keywords, and the request that follows from it."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from punnet.errors import InvalidRequest
from punnet.v1 import catalogue_pb2, compression_pb2, options_pb2, pool_pb2

_M = TypeVar("_M", bound=Message)


class _Enum(Protocol):
    def keys(self) -> list[str]: ...
    def Value(self, name: str) -> Any: ...  # noqa: N802


class InspectOptions(TypedDict, total=False):
    """Keywords of `inspect`. What is left out is found out from the labelled images."""

    layout: str  # nchw | nhwc | flat
    channels: str  # rgb | bgr | gray
    scale: float
    mean: Sequence[float]
    std: Sequence[float]
    input_height: int
    input_width: int
    fit: str  # stretch | crop
    class_names: Sequence[str]
    taps: Sequence[str]
    seed: int
    request_id: str


class CompressOptions(InspectOptions, total=False):
    """Keywords of `compress` and `plan`. What is left out has the appliance's default."""

    student: str
    size: int
    max_parameters: int
    max_macs: int
    max_latency_ms: float
    max_bytes: int
    student_weights: Path | str  # a safetensors file to start from
    score: str
    rule: str
    picks: int
    threshold: float
    prior: float
    class_floors: Mapping[str, int]  # fewest picks of a class by its name; "*" is every class not named
    class_caps: Mapping[str, int]  # most picks, likewise
    keep_look_alikes: bool
    excluded: Path | str  # a folder of images that must not be picked
    steps: int
    batch_size: int
    learning_rate: float
    temperature: float
    labelled_share: float
    label_weight: float
    class_weights: str
    radius: float
    loss: Mapping[str, float]  # part -> weight: kl, dkd, dist, standardised, hints, noisy_labels
    effort: str  # quick | normal | patient
    minutes: float
    draws: str  # uniform | weighted | balanced
    teacher_targets: str  # auto | cached | views | live
    views: int
    mixup: float
    cutmix: float
    clip_norm: float
    average_decay: float
    precision: str  # auto | fp32 | bf16 | fp16
    compiled: bool
    targets: Sequence[str]
    max_batch: int
    parity_images: str  # pool | generated | own
    variants: Sequence[str]  # fp32 | fp16 | int8-cpu | int8-trt
    include_preprocessing: bool
    softmax: bool
    fixed_batch: int
    accuracy_budget: float
    quantisation_training_steps: int
    runtimes: Sequence[str]  # openvino | executorch | one that the appliance's operator added
    validate_only: bool


# Message -> its field -> keyword.
_FIELDS: Mapping[type[Message], Mapping[str, str]] = {
    options_pb2.Preprocessing: {
        "layout": "layout",
        "channels": "channels",
        "scale": "scale",
        "mean": "mean",
        "std": "std",
        "height": "input_height",
        "width": "input_width",
        "fit": "fit",
    },
    options_pb2.StudentOptions: {
        "name": "student",
        "size": "size",
        "max_parameters": "max_parameters",
        "max_macs": "max_macs",
        "max_latency_ms": "max_latency_ms",
        "max_bytes": "max_bytes",
    },
    options_pb2.SelectionOptions: {
        "score": "score",
        "rule": "rule",
        "count": "picks",
        "threshold": "threshold",
        "prior": "prior",
        "class_floors": "class_floors",
        "class_caps": "class_caps",
        "keep_look_alikes": "keep_look_alikes",
    },
    options_pb2.DistillationOptions: {
        "steps": "steps",
        "batch_size": "batch_size",
        "learning_rate": "learning_rate",
        "temperature": "temperature",
        "labelled_share": "labelled_share",
        "label_weight": "label_weight",
        "class_weights": "class_weights",
        "radius": "radius",
        "loss": "loss",
        "effort": "effort",
        "minutes": "minutes",
        "draws": "draws",
        "targets": "teacher_targets",
        "views": "views",
        "mixup": "mixup",
        "cutmix": "cutmix",
        "clip_norm": "clip_norm",
        "average_decay": "average_decay",
        "precision": "precision",
        "compiled": "compiled",
    },
    options_pb2.ExportOptions: {
        "targets": "targets",
        "max_batch": "max_batch",
        "parity_images": "parity_images",
        "variants": "variants",
        "include_preprocessing": "include_preprocessing",
        "softmax": "softmax",
        "fixed_batch": "fixed_batch",
        "accuracy_budget": "accuracy_budget",
        "runtimes": "runtimes",
        "quantisation_training_steps": "quantisation_training_steps",
    },
}
# Keyword -> enum and the prefix of its values.
_ENUMS: Mapping[str, tuple[_Enum, str]] = {
    "layout": (options_pb2.Layout, "LAYOUT_"),
    "channels": (options_pb2.ChannelOrder, "CHANNEL_ORDER_"),
    "fit": (options_pb2.Fit, "FIT_"),
    "score": (options_pb2.Score, "SCORE_"),
    "rule": (options_pb2.SelectionRule, "SELECTION_RULE_"),
    "class_weights": (options_pb2.ClassWeights, "CLASS_WEIGHTS_"),
    "effort": (options_pb2.Effort, "EFFORT_"),
    "draws": (options_pb2.Draws, "DRAWS_"),
    "teacher_targets": (options_pb2.TeacherTargets, "TEACHER_TARGETS_"),
    "precision": (options_pb2.Precision, "PRECISION_"),
    "parity_images": (options_pb2.ParityImages, "PARITY_IMAGES_"),
}
# Numbers for which 0 means something of its own; for the others the contract reads 0 as "left out".
_ZERO_COUNTS = frozenset(
    {
        "label_weight",
        "threshold",
        "seed",
        "mixup",
        "cutmix",
        "clip_norm",
        "average_decay",
        "accuracy_budget",
        "quantisation_training_steps",
    }
)
# What a message's field can hold at all; tighter limits are the appliance's to say.
_BOUNDS: Mapping[int, tuple[int, int]] = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
}
SEEDS = (0, 2**31 - 1)


def compress_request(pool: str, options: CompressOptions) -> compression_pb2.CompressRequest:
    """The request of a compression or plan, but for its teacher and images.

    Raises:
        InvalidRequest: a keyword's value is not one of its names, a 0 that would be read as left out, or a number that
            its field can't hold.
    """
    return compression_pb2.CompressRequest(
        request_id=options.get("request_id", "") or fresh_request_id(),
        pool=pool,
        student=_group(options_pb2.StudentOptions, options),
        preprocessing=_group(options_pb2.Preprocessing, options),
        selection=_group(options_pb2.SelectionOptions, options),
        distillation=_group(options_pb2.DistillationOptions, options),
        export=_group(options_pb2.ExportOptions, options),
        seed=_within("seed", options.get("seed", 0), SEEDS),
        validate_only=options.get("validate_only", False),
    )


def inspect_request(options: InspectOptions) -> catalogue_pb2.InspectTeacherRequest:
    """The request of an inspection, but for its teacher and images.

    Raises:
        InvalidRequest: as for `compress_request`.
    """
    return catalogue_pb2.InspectTeacherRequest(
        request_id=options.get("request_id", "") or fresh_request_id(),
        preprocessing=_group(options_pb2.Preprocessing, options),
        seed=_within("seed", options.get("seed", 0), SEEDS),
    )


def create_pool_request(
    name: str, tar_sha256: Sequence[str], request_id: str = "", *, shrink: pool_pb2.Shrink | None = None
) -> pool_pb2.CreatePoolRequest:
    """The request of an ingest."""
    return pool_pb2.CreatePoolRequest(
        request_id=request_id or fresh_request_id(), name=name, tar_sha256=tar_sha256, shrink=shrink
    )


def append_pool_request(name: str, tar_sha256: Sequence[str], request_id: str = "") -> pool_pb2.AppendPoolRequest:
    """The request of an ingest into a pool."""
    return pool_pb2.AppendPoolRequest(request_id=request_id or fresh_request_id(), name=name, tar_sha256=tar_sha256)


def shrink_of(short_side: int | None, quality: int | None) -> pool_pb2.Shrink | None:
    """How large images are stored smaller; None where they are not.

    Raises:
        InvalidRequest: a quality without a short side, a 0 that would be read as left out, or a number beyond 32 bits.
    """
    if short_side is None and quality is None:
        return None
    limit = _BOUNDS[FieldDescriptor.TYPE_INT32][1]
    if not short_side or quality == 0 or max(abs(short_side), abs(quality or 0)) > limit:
        raise InvalidRequest(
            f"Images can't be shrunk to a short side of {short_side} pixels with quality {quality}.",
            code="REQUEST_INVALID",
            remedy="Give a short side of 8 to 4096 pixels, and with it a quality of 1 to 100 or none.",
            details={"short_side": str(short_side), "quality": str(quality)},
        )
    return pool_pb2.Shrink(short_side=short_side, quality=quality or 0)


def names(keyword: str) -> list[str]:
    """The names that an option with a fixed choice takes, for instance `balanced`."""
    enum, prefix = _ENUMS[keyword]
    return [key.removeprefix(prefix).lower() for key in enum.keys() if not key.endswith("_UNSPECIFIED")]  # noqa: SIM118


def _group(message: type[_M], options: Mapping[str, Any]) -> _M:
    stated = {field: keyword for field, keyword in _FIELDS[message].items() if keyword in options}
    values = {field: _value(keyword, options[keyword]) for field, keyword in stated.items()}
    for field, value in values.items():
        bounds = _BOUNDS.get(message.DESCRIPTOR.fields_by_name[field].type)
        if bounds is not None:
            _within(stated[field], value, bounds)
    return message(**values)


def _value(keyword: str, value: Any) -> Any:
    if keyword in _ENUMS:
        return _number(keyword, str(value))
    if value == 0 and not isinstance(value, bool) and keyword not in _ZERO_COUNTS:
        raise InvalidRequest(
            f"{keyword} is 0.",
            code="REQUEST_INVALID",
            remedy=f"Give a {keyword} above 0, or leave it out for the default.",
            details={"option": keyword},
        )
    return value


def _within(keyword: str, value: int, bounds: tuple[int, int]) -> int:
    low, high = bounds
    if not low <= value <= high:
        raise InvalidRequest(
            f"{keyword} is {value}.",
            code="REQUEST_INVALID",
            remedy=f"Give a {keyword} of {low} to {high}.",
            details={"option": keyword, "value": str(value)},
        )
    return value


def _number(keyword: str, name: str) -> int:
    enum, prefix = _ENUMS[keyword]
    accepted = names(keyword)
    plain = name.lower().replace("-", "_")
    if plain not in accepted:
        raise InvalidRequest(
            f"{keyword} {name!r} is not known.",
            code="REQUEST_INVALID",
            remedy=f"Take one of {', '.join(accepted)}.",
            details={"option": keyword, "value": name},
        )
    return int(enum.Value(prefix + plain.upper()))


def fresh_request_id() -> str:
    """An id of our own for a user who gave none: a call that is sent twice must not start two jobs."""
    return secrets.token_hex(16)
