"""A torch classifier to one ONNX file: free batch, folded BatchNorm, the same bytes each time."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from exporters.errors import ExportError

INPUT, OUTPUT, BATCH = "input", "logits", "batch"
EXAMPLE_BATCH = 2  # torch.export may take a batch of 1 for a constant
EXPORTER_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFacts:
    """What was written."""

    sha256: str
    size: int
    opset: int
    nodes: int
    batch_norms: int  # that the exporter could not fold
    seconds: float


def export_onnx(module: nn.Module, path: Path, *, size: int, channels: int, metadata: Mapping[str, str]) -> OnnxFacts:
    """Write a module [N, channels, size, size] -> [N, K] as ONNX with `input` and `logits`, N free.

    Args:
        module: left as it is; blocks that timm can merge are merged in a copy.
        metadata: goes into the file's metadata_props.

    Raises:
        ExportError: torch's exporter or the checker refuses the network.
    """
    started = time.monotonic()
    merged = merge_branches(module).eval()
    example = torch.zeros(EXAMPLE_BATCH, channels, size, size)
    try:
        with _silence():
            program = torch.onnx.export(
                merged,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: BATCH},),
                verbose=False,
            )
    except RuntimeError as error:  # torch.onnx.OnnxExporterError is one
        raise _refused(module, size, error) from error
    if program is None:
        raise _refused(module, size, RuntimeError("the exporter returned nothing"))
    model: Any = program.model_proto
    strip_traces(model)
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    _check(model, module, size)
    data: bytes = model.SerializeToString(deterministic=True)
    _write(path, data)
    return OnnxFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        nodes=len(model.graph.node),
        batch_norms=sum(node.op_type == "BatchNormalization" for node in model.graph.node),
        seconds=time.monotonic() - started,
    )


def merge_branches(module: nn.Module) -> nn.Module:
    """A copy in which blocks that train with several branches are single convolutions.

    The verbs are those of timm's families (FastViT, RepVGG, MobileOne, RepViT, LeViT).
    """
    merged = copy.deepcopy(module)

    def merge(parent: nn.Module) -> None:
        children: list[tuple[str, Any]] = list(parent.named_children())
        for name, child in children:
            if hasattr(child, "fuse"):
                setattr(parent, name, child.fuse())
            elif hasattr(child, "reparameterize"):
                child.reparameterize()
            merge(getattr(parent, name))

    with torch.no_grad():
        merge(merged)
    return merged


def strip_traces(model: Any) -> None:
    """Drop what torch notes of its own source: stack traces with paths, module names, documentation."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _check(model: Any, module: nn.Module, size: int) -> None:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise _refused(module, size, error) from error
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_param != BATCH:
            raise _refused(module, size, ValueError(f"the batch of {value.name!r} became fixed at {first.dim_value}"))


def _refused(module: nn.Module, size: int, error: Exception) -> ExportError:
    reason = str(error).strip().split("\n", maxsplit=1)[0][:300]
    return ExportError(
        f"{type(module).__name__} at {size} pixels can't be exported to ONNX: {type(error).__name__}: {reason}.",
        "Choose another student.",
        network=type(module).__name__,
        size=size,
    )


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter's notes on its own deprecations off the terminal (torch 2.13 warns of its own calls)."""
    loggers = [logging.getLogger(name) for name in EXPORTER_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
