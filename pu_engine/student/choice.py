"""Which networks a job may train: the one named, or with `auto` those of a list that meet the limits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from exporters.torch_to_onnx import export_onnx
from pu_engine.errors import EngineError
from pu_engine.results import write_atomic
from pu_engine.runtime.latency import measure_latency
from pu_engine.runtime.sessions import open_session
from pu_engine.student.catalogue import SMALL_SIZE, build, count_macs, count_parameters, default_name
from pu_engine.types import StudentOptions

AUTO = "auto"
AUTO_SMALL = (
    "cifar_resnet8",
    "cifar_resnet14",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
)
AUTO_LARGE = ("mobilenetv4_conv_small_050", "mobilenetv3_small_100", "mobilenetv4_conv_small", "efficientnet_b0")
PINNED = ".choice.json"
PROBE = ".probe.onnx"

Candidate = dict[str, str]
Shape = tuple[int, int, int]  # size, channels, classes


def shortlist(
    options: StudentOptions, *, size: int, channels: int, classes: int, scratch: Path
) -> tuple[Candidate, ...]:
    """Every candidate with its figures, the largest first; `verdict` says which limit it is over, and is empty where it
    is within all.

    The list is kept in `scratch`, so that a resumed run trains the same network: where a latency limit decides, it
    rests on a measurement on this machine, and a second one could differ.

    Raises:
        EngineError: STUDENT_UNSUPPORTED where no candidate meets the limits, naming the nearest; as `build`.
    """
    pinned = scratch / PINNED
    if pinned.exists():
        return tuple(json.loads(pinned.read_text()))
    shape = (size, channels, classes)
    ordered = sorted((_counted(name, shape) for name in _names(options, size)), key=lambda c: -int(c["macs"]))
    for candidate in ordered:
        candidate["verdict"] = _over_limit(candidate, options, shape, scratch)
    if all(candidate["verdict"] for candidate in ordered):
        raise _none_fits(ordered[-1], options)
    write_atomic(pinned, json.dumps(ordered).encode())
    return tuple(ordered)


def largest(candidates: Sequence[Candidate]) -> str:
    """The name of the largest one within the limits."""
    return next(c["name"] for c in candidates if not c["verdict"])


def _names(options: StudentOptions, size: int) -> tuple[str, ...]:
    if options.name == AUTO:
        return AUTO_SMALL if size <= SMALL_SIZE else AUTO_LARGE
    return (options.name or default_name(size),)


def _counted(name: str, shape: Shape) -> Candidate:
    size, channels, _ = shape
    module = build(name, *shape)
    return {
        "name": name,
        "parameters": str(count_parameters(module)),
        "macs": str(count_macs(module, size, channels)),
        "bytes": str(sum(value.numel() * value.element_size() for value in module.state_dict().values())),
    }


def _over_limit(candidate: Candidate, options: StudentOptions, shape: Shape, scratch: Path) -> str:
    limits = (("parameters", options.max_parameters), ("macs", options.max_macs), ("bytes", options.max_bytes))
    for key, limit in limits:
        if limit is not None and int(candidate[key]) > limit:
            return f"{key} {candidate[key]} > {limit}"
    if options.max_latency_ms is None:
        return ""
    latency = latency_ms(candidate["name"], shape, scratch)
    candidate["latency_ms"] = f"{latency:.4g}"
    if latency > options.max_latency_ms:
        return f"latency {latency:.4g} ms > {options.max_latency_ms:g} ms"
    return ""


def latency_ms(name: str, shape: Shape, scratch: Path) -> float:
    """Median of one image on one thread; untrained weights take as long as trained ones."""
    size, channels, _ = shape
    path = scratch / PROBE
    export_onnx(build(name, *shape), path, size=size, channels=channels, metadata={})
    session = open_session(path, threads=1)
    image = np.zeros((1, channels, size, size), np.float32)
    latency = measure_latency(session, image, subject=name, threads=1)
    path.unlink()
    return latency.p50_ms


def _none_fits(nearest: Candidate, options: StudentOptions) -> EngineError:
    limits = {
        "max_parameters": options.max_parameters,
        "max_macs": options.max_macs,
        "max_latency_ms": options.max_latency_ms,
        "max_bytes": options.max_bytes,
    }
    asked = ", ".join(f"{name} {value:g}" for name, value in limits.items() if value is not None)
    return EngineError(
        "STUDENT_UNSUPPORTED",
        f"No student meets {asked}; the nearest is {nearest['name']} with {nearest['parameters']} parameters "
        f"and {nearest['macs']} multiply-accumulates ({nearest['verdict']}).",
        "Raise the limit, or choose a smaller image size.",
        nearest=nearest["name"],
        **{name: value for name, value in limits.items() if value is not None},
    )
