"""The proof of a twin: its logits beside onnxruntime's on the labelled images, and what intake says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.runtime import forward
from pu_engine.teacher import facts
from pu_engine.teacher.canonicalisation import QUANTISERS
from pu_engine.twin.report import TwinReport
from pu_engine.twin.structure import TwinUnavailable
from pu_engine.twin.torch_twin import Twin, build, save
from pu_engine.variants.agreement import argmax_agreement, relative_max_error

MOST_PARAMETERS = 100_000_000  # 131 million take intake itself above the 4 GiB of its process
PROOF_MACS = 100e9  # the images of the proof are bounded in work, not in seconds
FEWEST_IMAGES = 8
CHUNK_ROWS = 32
REASON_CHARACTERS = 200
# Relative to the largest logit. Half precision rounds at 5e-4, in the teacher and not in its twin: 2e-4 was measured on
# a ResNet-20 and 5e-3 is what its batch may cost, too.
FLOAT_ERROR, HALF_ERROR = 1e-3, 5e-3
# Of the predictions: onnxruntime's integer kernels round where single precision does not. A graph read wrongly, without
# the bounds of its quantisers, agreed on .07 of the images; the lowest of four real teachers was .985.
QUANTISED_AGREEMENT = 0.9


def prove(
    folder: Path,
    tapped: Any,
    values: NDArray[Any],
    logits: NDArray[np.floating],
    *,
    macs: int,
    batch: int | None,
    threads: int,
) -> TwinReport:
    """Build the twin of a tapped model, compare it, and write its files into `folder` if it holds.

    Args:
        values: [n, ...] the teacher's input on labelled images. logits: [n, K] of onnxruntime on them.
        macs: multiply-accumulates an image. batch: rows that the model insists on, None for any.
    """
    if batch is not None:
        return TwinReport(available=False, reason=f"the teacher runs at a batch of {batch} only")
    size = facts.parameters(tapped)
    if size > MOST_PARAMETERS:
        reason = f"the teacher has {size} parameters; up to {MOST_PARAMETERS} fit beside it into intake's memory"
        return TwinReport(available=False, reason=reason)
    count = int(np.clip(PROOF_MACS / max(1, macs), FEWEST_IMAGES, len(values)))
    bound = error_bound(tapped)
    try:
        with torch_threads(threads):
            twin = build(tapped)
            ours = twin_logits(twin, values[:count])
            report = compared(ours, logits[:count], bound=bound, parameters=trainable(twin))
            if report.available:
                save(twin, folder)
            elif bound is not None:
                report = replace(report, reason=report.reason + first_difference(twin, tapped, values[:2], threads))
    except TwinUnavailable as error:
        return TwinReport(available=False, reason=str(error))
    except (MemoryError, RuntimeError) as error:
        # A twin is a gift: the teacher stays usable where intake's memory doesn't hold both.
        return TwinReport(available=False, reason=f"it can't be run on the images: {str(error)[:REASON_CHARACTERS]}")
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        # So it does where a stranger's graph has a form that the reading of it did not foresee.
        return TwinReport(available=False, reason=f"its graph can't be read: {type(error).__name__}")
    return report


def error_bound(model: Any) -> float | None:
    """Largest error of a twin, relative to the largest logit; None for a quantised model, whose digits are others."""
    if any(node.op_type in QUANTISERS for node in model.graph.node):
        return None
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    return HALF_ERROR if half else FLOAT_ERROR


def compared(
    ours: NDArray[np.floating], theirs: NDArray[np.floating], *, bound: float | None, parameters: int
) -> TwinReport:
    """The verdict on logits [n, K] of a twin beside onnxruntime's.

    Args:
        bound: `error_bound` of the model.
    """
    error, agreement = relative_max_error(theirs, ours), argmax_agreement(theirs, ours)
    if bound is None:
        holds = np.isfinite(error) and agreement >= QUANTISED_AGREEMENT
        reason = f"its predictions agree on {agreement:.1%}, {QUANTISED_AGREEMENT:.0%} are asked of a quantised teacher"
    else:
        holds = error <= bound
        reason = f"its logits differ by {error:.2g} of the largest, {bound:g} is allowed"
    return TwinReport(
        available=bool(holds),
        reason="" if holds else reason,
        parameters=parameters,
        images=len(ours),
        quantised=bound is None,
        agreement=agreement,
        max_error=error if np.isfinite(error) else None,
    )


def twin_logits(twin: Twin, values: NDArray[Any]) -> NDArray[np.float32]:
    """Logits [n, K] of images in the teacher's input form."""
    with torch.no_grad():
        parts = [twin(torch.from_numpy(values[i : i + CHUNK_ROWS])) for i in range(0, len(values), CHUNK_ROWS)]
    return torch.cat(parts).float().numpy()


def first_difference(twin: Twin, model: Any, values: NDArray[Any], threads: int) -> str:
    """Where the twin leaves onnxruntime, as the end of a sentence; "" where no single step does, or can be observed.

    Args:
        model: that the twin was built of. values: [n, ...] a few images.
    """
    names = [name for move in twin.moves for name in move.step.outputs if name]
    try:
        theirs = forward.observe(model, names, values, threads)
    except EngineError:
        return ""  # some tensors are no output that onnxruntime gives
    images = torch.from_numpy(values)
    ours = twin.started(images)
    for move in twin.moves:
        with torch.no_grad():
            twin.apply_step(move, ours, len(images))
        for name in move.step.outputs:
            if name not in ours or not ours[name].is_floating_point():
                continue
            expected = theirs[name].astype(np.float32)
            difference = np.abs(ours[name].float().numpy() - expected).max(initial=0.0)
            if not difference <= FLOAT_ERROR * np.abs(expected).max(initial=0.0):
                return f"; the first to differ is {move.step.operator} {move.step.node!r}"
    return ""


def trainable(twin: Twin) -> int:
    """Numbers in the parameters."""
    return sum(parameter.numel() for parameter in twin.parameters())


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Torch on so many threads, as long as this lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
