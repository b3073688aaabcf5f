"""A torch classifier to one ONNX file: free batch, folded BatchNorm, the same bytes each time."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from exporters.errors import ExportError
from exporters.onnx_file import OnnxFacts, write_model

INPUT, OUTPUT, BATCH = "input", "logits", "batch"
HOP = "torch -> fp32"
EXAMPLE_BATCH = 2  # torch.export may take a batch of 1 for a constant
EXPORTER_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")


def export_onnx(module: nn.Module, path: Path, *, size: int, channels: int, metadata: Mapping[str, str]) -> OnnxFacts:
    """Write a module [N, channels, size, size] -> [N, K] as ONNX with `input` and `logits`, N free.

    Args:
        metadata: goes into the file's metadata_props.

    Raises:
        ExportError: as for `to_onnx`.
    """
    started = time.monotonic()
    facts = write_model(to_onnx(module, size=size, channels=channels), path, metadata)
    return replace(facts, seconds=time.monotonic() - started)


def to_onnx(module: nn.Module, *, size: int, channels: int) -> Any:
    """The graph of a module [N, channels, size, size] -> [N, K], with `input` and `logits`, N free.

    Args:
        module: left as it is; blocks that timm can merge are merged in a copy.

    Raises:
        ExportError: a weight is not a number, or torch's exporter or the checker refuses the network.
    """
    check_finite(module)
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
    _check(model, module, size)
    return model


def check_finite(module: nn.Module) -> None:
    """Refuse weights and statistics that are not numbers.

    Raises:
        ExportError: names the first of them.
    """
    for name, value in module.state_dict().items():
        broken = int((~torch.isfinite(value)).sum())
        if broken:
            raise ExportError(
                f"{broken} of {value.numel()} values of the weight {name!r} are not finite (hop {HOP}).",
                "Train the student again, at a lower learning rate.",
                hop=HOP,
                weight=name,
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
    network = f"{type(module).__name__} at {size} pixels"
    return ExportError(
        f"{network} can't be exported to ONNX (hop {HOP}): {type(error).__name__}: {reason}.",
        "Choose another student.",
        hop=HOP,
        network=type(module).__name__,
        size=size,
    )


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
