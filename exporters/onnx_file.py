"""A finished ONNX graph as a file: metadata, the checker's word, the same bytes each time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from exporters.errors import ExportError


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFacts:
    """What was written."""

    sha256: str
    size: int
    opset: int
    nodes: int
    batch_norms: int  # that the exporter could not fold
    seconds: float = 0.0  # of the whole export


def write_model(model: Any, path: Path, metadata: Mapping[str, str]) -> OnnxFacts:
    """Check and write a graph, with `metadata` as its only metadata_props.

    Raises:
        ExportError: the checker refuses the graph.
    """
    named = onnx.ModelProto()
    named.CopyFrom(model)
    named.ClearField("metadata_props")
    for key, value in sorted(metadata.items()):
        named.metadata_props.add(key=key, value=value)
    try:
        onnx.checker.check_model(named, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0][:300]
        raise ExportError(
            f"{path.name} would not be a valid ONNX file: {reason}.", "Choose another student.", file=path.name
        ) from error
    data: bytes = named.SerializeToString(deterministic=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)
    return OnnxFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        opset=next(o.version for o in named.opset_import if o.domain in ("", "ai.onnx")),
        nodes=len(named.graph.node),
        batch_norms=sum(node.op_type == "BatchNormalization" for node in named.graph.node),
    )


def infer_again(model: Any) -> Any:
    """The graph with every intermediate shape and type found anew, after its nodes were changed."""
    model.graph.ClearField("value_info")
    return onnx.shape_inference.infer_shapes(model, data_prop=True)
