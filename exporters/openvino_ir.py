"""A student's ONNX files as OpenVINO IR, for Intel's processors: an `.xml` with its weights in a `.bin`."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.errors import ExportError
from exporters.runtime_files import Converted, Run, Source

REQUIREMENT = "openvino>=2026.2"
# int8-cpu's graph, for OpenVINO's processors fuse unsigned activations as ONNX Runtime does.
MADE_OF = {"openvino-fp32": "fp32", "openvino-int8": "int8-cpu"}
MESSAGE_CHARACTERS = 200


def missing() -> str:
    """What to install where the runtime is not there."""
    return "" if importlib.util.find_spec("openvino") else REQUIREMENT


def convert(source: Source, out: Path) -> Sequence[Converted]:
    """IR of the fp32 file, and of the int8-cpu file where there is one.

    Raises:
        ExportError: OpenVINO can't read a graph.
    """
    return [
        _converted(name, made_of, source.onnx[made_of], out)
        for name, made_of in MADE_OF.items()
        if made_of in source.onnx
    ]


def load(path: Path, threads: int) -> Run:
    """The file on the CPU; in float32 where it is float: by default some processors compute in bfloat16 instead."""
    openvino = _openvino()
    properties = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", properties)

    def run(inputs: NDArray[Any]) -> NDArray[np.float32]:
        return np.array(compiled([inputs])[0], np.float32)

    return run


def _converted(name: str, made_of: str, onnx_path: Path, out: Path) -> Converted:
    openvino = _openvino()
    path = out / f"student-{name}.xml"
    try:
        model = openvino.Core().read_model(str(onnx_path))
        _name_by_place(model)
        openvino.save_model(model, str(path), compress_to_fp16=False)
    except RuntimeError as error:
        raise ExportError(
            f"OpenVINO can't read {onnx_path.name}: {' '.join(str(error).split())[:MESSAGE_CHARACTERS]}.",
            "Use the ONNX file.",
            file=onnx_path.name,
        ) from error
    return Converted(
        name=name,
        path=path,
        precision=made_of.partition("-")[0],
        target="cpu",
        made_of=made_of,
        beside=(path.with_suffix(".bin"),),
        details={"openvino": str(openvino.__version__)},
    )


def _name_by_place(model: Any) -> None:
    """Number what OpenVINO numbers through the whole process, so that a second conversion gives the same bytes."""
    model.set_friendly_name("student")
    for place, operation in enumerate(model.get_ordered_ops()):
        kind = operation.get_type_name()
        if re.fullmatch(rf"{kind}_\d+", operation.get_friendly_name()):
            operation.set_friendly_name(f"{kind}_{place}")


def _openvino() -> Any:
    """OpenVINO, imported late and without what reports its import home."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino
