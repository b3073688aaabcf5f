"""A short distillation of a finished student through the rounding of its int8 form.

The quantised graph is read as its torch twin: tensors are rounded over the ranges that calibration found, and the
gradient passes straight through. Weights are rounded by channel as they are used. Loss, images and targets are those of
the distillation, at a low rate.

Source: Jacob et al. 2018 (training with simulated quantisation); Bengio et al. 2013 (straight-through estimator).
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from exporters.errors import ExportError
from pu_engine.errors import EngineError
from pu_engine.results import load
from pu_engine.training.batches import load_part
from pu_engine.training.distill_types import DistillationOptions, DistillLoss
from pu_engine.training.loop import ASSUMED_MACS_PER_SECOND, Task, checkpoint_steps, repeatable, train
from pu_engine.twin.structure import TwinUnavailable
from pu_engine.twin.torch_twin import Twin, build
from pu_engine.types import Student
from pu_engine.variants.int8_task import Int8Task
from pu_engine.variants.sample_images import parts_without

MOST_STEPS, LEAST_STEPS = 200, 20
MOST_SECONDS = 600  # that the default may take, by the work of a step alone
MOST_BATCH = 64
LEARNING_RATE, CLIP_NORM = 1e-3, 1.0
QUANTISED = "_quantized"  # what onnxruntime's quantiser appends to the name of a weight
LEVELS = 127  # steps of a symmetric 8-bit weight to either side
SMALLEST_STEP = 1e-12
CHECKPOINTS = ".quantisation"
REMEDY = "Use the fp32 or the fp16 file."


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a weight of the twin comes from."""

    source: str  # the initializer of the fp32 graph
    rounded: bool  # to int8; a bias is not
    axis: int | None  # of its channels; None: one step for all


class Rounded(nn.Module):
    """A weight as int8 has it, with one step a channel; the gradient passes as if it had not been rounded."""

    def __init__(self, axis: int | None) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        dims = [d for d in range(weight.ndim) if d != self.axis]
        step = weight.detach().abs().amax(dim=dims, keepdim=True).clamp(min=SMALLEST_STEP) / LEVELS
        return weight + (torch.round(weight / step) * step - weight).detach()


def steps_of(asked: int | None, macs: int, batch_size: int) -> int:
    """Steps of the training: as many as asked for, or what fits into MOST_SECONDS by the student's work."""
    if asked is not None:
        return asked
    seconds = 3 * macs * min(batch_size, MOST_BATCH) / ASSUMED_MACS_PER_SECOND
    return max(LEAST_STEPS, min(MOST_STEPS, int(MOST_SECONDS / seconds)))


def trained_graph(task: Int8Task, quantised: Any, steps: int) -> Any:
    """The fp32 graph with the weights that its int8 form answers best with.

    Args:
        task: none of its validation images is trained on.
        quantised: the fp32 graph in int8, with all that its form quantises.

    Raises:
        ExportError: the graph has no twin, or the training diverged.
    """
    try:
        twin = build(quantised)
    except TwinUnavailable as error:
        raise ExportError(f"The int8 graph can't be trained: {error}.", REMEDY) from error
    origins = weight_origins(twin, quantised, task.base)
    start_from(twin, origins, task.base)
    training = build_training(task, steps, hashlib.sha256(quantised.SerializeToString(deterministic=True)).hexdigest())
    folder = task.scratch / CHECKPOINTS
    try:
        with repeatable(task.inputs.threads):
            train(twin, training, folder, task.progress)
    except EngineError as error:
        raise ExportError(f"Training against rounding failed: {error.message}", REMEDY) from error
    shutil.rmtree(folder)
    return with_weights(task.base, {origin.source: _value(twin, name) for name, origin in origins.items()})


def weight_origins(twin: Twin, quantised: Any, base: Any) -> dict[str, Origin]:
    """By the twin's names: the weights that have a counterpart in the fp32 graph and learn.

    Raises:
        ExportError: two of them have the same counterpart.
    """
    known = {tensor.name for tensor in base.graph.initializer}
    stored = {tensor.name: tensor for tensor in quantised.graph.initializer}
    unpacked = {}
    for node in quantised.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            unpacked[node.output[0]] = _origin(node, stored)
    origins = {}
    for weight in twin.structure.weights:
        plain = Origin(source=weight.source, rounded=False, axis=None)
        origin = unpacked.get(weight.source, plain)
        if weight.trainable and origin.source in known:
            origins[weight.name] = origin
    sources = [origin.source for origin in origins.values()]
    twice = sorted({source for source in sources if sources.count(source) > 1})
    if twice:
        raise ExportError(f"The weight {twice[0]!r} is used twice, in two int8 forms.", REMEDY, weight=twice[0])
    return origins


def start_from(twin: Twin, origins: dict[str, Origin], base: Any) -> None:
    """Give the twin the fp32 weights, rounded as they are used."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in base.graph.initializer}
    for name, origin in origins.items():
        with torch.no_grad():
            getattr(twin, name).copy_(torch.from_numpy(values[origin.source].copy()))
        if origin.rounded:
            parametrize.register_parametrization(twin, name, Rounded(origin.axis))


def build_training(task: Int8Task, steps: int, graph: str) -> Task:
    """The training, without what the distillation learned beside the student (hints and a confusion)."""
    inputs, folder = task.inputs, Path(task.inputs.gathering.path)
    loss = replace(inputs.loss, hints=0.0, noisy_labels=0.0)
    if not (loss.kl or loss.dkd or loss.standardised or loss.dist):
        loss = replace(loss, kl=DistillLoss().kl)
    options = DistillationOptions(
        steps=steps, batch_size=min(inputs.batch_size, MOST_BATCH), learning_rate=LEARNING_RATE, loss=loss,
        labelled_share=inputs.labelled_share, weight_decay=0.0, clip_norm=CLIP_NORM, precision="fp32",
    )  # fmt: skip
    labelled, picked = parts_without(
        task.validation, load_part(folder, "labelled", labelled=True), load_part(folder, "picked", labelled=False)
    )
    return Task(
        labelled=labelled,
        picked=picked,
        held_out=load_part(folder, "held_out", labelled=True),
        preprocessing=task.spec.preprocessing,
        options=options,
        steps=steps,
        seed=inputs.seed,
        checkpoint_steps=checkpoint_steps(task.spec.macs, options.batch_size),
        key=f"{graph}-{inputs.gathering.sha256}-{inputs.seed}-{steps}",
        target_scale=load(Student, inputs.distillation.path).target_scale,
    )


def with_weights(base: Any, weights: dict[str, NDArray[np.float32]]) -> Any:
    """The graph with other values in its initializers, by name."""
    changed = onnx.ModelProto()
    changed.CopyFrom(base)
    for tensor in changed.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
    return changed


def _origin(node: Any, stored: dict[str, Any]) -> Origin:
    tensor = stored[node.input[0]]
    rounded = tensor.data_type == onnx.TensorProto.INT8
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    by_channel = rounded and len(stored[node.input[1]].dims) == 1
    return Origin(
        source=tensor.name.removesuffix(QUANTISED),
        rounded=rounded,
        axis=axis % len(tensor.dims) if by_channel else None,
    )


def _value(twin: Twin, name: str) -> NDArray[np.float32]:
    rounded = parametrize.is_parametrized(twin, name)
    parameter = twin.get_parameter(f"parametrizations.{name}.original" if rounded else name)
    return np.ascontiguousarray(parameter.detach().cpu().numpy(), np.float32)
