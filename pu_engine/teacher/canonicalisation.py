"""From the guarded model to the canonical one: surgery, and the runs that prove it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.imaging.preprocessing import image_channels, model_input
from pu_engine.runtime import forward
from pu_engine.teacher import facts, graph_surgery, score_output, tap_choice, taps
from pu_engine.teacher.fact_types import TapCandidate
from pu_engine.teacher.graph_surgery import INPUT, LOGITS
from pu_engine.teacher.score_output import ScoreOutput
from pu_engine.types import Preprocessing, Tap

PROOF_IMAGES = 5
# Largest difference between k images at once and one by one, relative to the largest score.
BATCH_ERROR = {"float32": 1e-4, "float64": 1e-4, "float16": 5e-3, "uint8": 1e-4, "int8": 1e-4}
PARITY_ERROR = 2e-3  # relative to the largest score
# A tap on a quantised graph keeps onnxruntime from fusing operators, which then round at other places: 0.022 was
# measured on an int8 ResNet-8.
QUANTISED_PARITY_ERROR = 0.05
# The same with float16, which onnxruntime computes in float32 between the places where something reads it: 2.4e-3 was
# measured on a generated network.
HALF_PARITY_ERROR = 1e-2
QUANTISERS = ("QuantizeLinear", "DynamicQuantizeLinear")
INPUT_VALUES = 2**28  # at once: 1 GiB of float32
TINY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Canonical:
    """The canonical model, with what was measured on the way to it."""

    model: Any
    tapped: Any
    declared_batch: int | None  # of the file
    batch: int | None  # that its scores need; None: any
    output: ScoreOutput
    taps: tuple[Tap, ...]
    tap_candidates: tuple[TapCandidate, ...]
    parameters: int
    macs: int


def canonicalise(
    original: Any,
    example: Preprocessing,
    *,
    labels: int,
    stated: int,
    seed: int,
    threads: int,
    stated_taps: Sequence[str] = (),
) -> Canonical:
    """Surgery on the score output, the proof of the batch, taps and facts. Images of noise answer all of it.

    Args:
        original: the guarded model with its constants hoisted.
        example: any preprocessing with the teacher's layout, size and type.
        labels: distinct labels of the images. stated: class names stated, 0 for none.
        stated_taps: tensors to tap; none: chosen.

    Raises:
        EngineError: TEACHER_NOT_A_CLASSIFIER, LABELS_UNMAPPABLE, MODEL_BAD_GRAPH, PARITY_FAILED, TAP_INVALID.
    """
    generator = np.random.default_rng(seed)
    declared = graph_surgery.image_input(original).dims[0]
    batch = declared or 1
    rows = noise(batch, example, generator)
    tails = score_output.tails(original)
    names = list(dict.fromkeys(name for tail in tails for name in (tail.output, tail.logits)))
    values = forward.observe(original, names, rows, threads)
    output = score_output.choose(original, tails, values, batch=batch, labels=labels, stated=stated)
    fixed = graph_surgery.canonical(
        original, output.tail, values[output.tail.logits], rows.shape, probabilities=output.logarithm
    )
    cuts = [*taps.candidates(fixed), *tap_choice.observable(fixed, stated_taps)]
    observed = forward.observe(fixed, list(dict.fromkeys([*cuts, *facts.shape_names(fixed), LOGITS])), rows, threads)
    observed[INPUT] = rows
    candidates = tap_choice.candidates(fixed, observed, example.layout)
    chosen = tap_choice.choose(fixed, stated_taps, candidates, observed, example.layout)
    proof = noise(PROOF_IMAGES, example, generator)
    freed = graph_surgery.free_batch(fixed, rewrite=declared is not None)
    # With the taps on both sides: they change how onnxruntime rounds a quantised graph.
    # A row fills its batch by itself: beside others it would show what they do to it on both sides of the comparison.
    filled = np.repeat(proof, batch, axis=0)
    alone = forward.run_rows(forward.stranger_session(taps.tapped(fixed, chosen), threads), filled, batch)[0][::batch]
    free = _same_together(taps.tapped(freed, chosen), proof, alone, BATCH_ERROR[example.dtype], threads)
    model = freed if free else fixed
    return Canonical(
        model=model,
        tapped=taps.tapped(model, chosen),
        declared_batch=declared,
        batch=None if free else batch,
        output=output,
        taps=tuple(chosen),
        tap_candidates=candidates,
        parameters=facts.parameters(fixed),
        macs=facts.macs(fixed, observed, batch),
    )


def noise(count: int, preprocessing: Preprocessing, generator: np.random.Generator) -> NDArray[Any]:
    """Model input of images of noise, for questions that any image answers.

    Raises:
        EngineError: TEACHER_NOT_A_CLASSIFIER for a size that no image has.
    """
    size = (count, preprocessing.height, preprocessing.width, image_channels(preprocessing))
    if math.prod(size) > INPUT_VALUES:
        raise graph_surgery.not_a_classifier(
            f"An input of {' x '.join(map(str, size))} values is none of images; at most {INPUT_VALUES} are run.",
            limit=INPUT_VALUES,
        )
    return model_input(generator.integers(0, 256, size, np.uint8), preprocessing)


def _same_together(tapped: Any, rows: NDArray[Any], alone: NDArray[Any], bound: float, threads: int) -> bool:
    """Whether several images at once get the scores that each gets alone, the taps being there."""
    try:
        together = forward.run_rows(forward.stranger_session(tapped, threads), rows, None)
    except EngineError:
        return False  # something in the graph insists on the old batch
    if any(len(output) != len(rows) for output in together) or together[0].shape != alone.shape:
        return False
    # Noise may overflow what images do not; then the images of the probe decide.
    usable = np.isfinite(alone) & np.isfinite(together[0])
    largest = float(np.abs(alone[usable]).max(initial=TINY))
    return float(np.abs(together[0][usable] - alone[usable]).max(initial=0.0)) <= bound * largest


def check_parity(
    original: Any, canonical: Canonical, values: NDArray[Any], logits: NDArray[np.float64], threads: int
) -> None:
    """Both copies must say what the file says, once their logits are put back into its kind of scores.

    Args:
        values: [n, ...] the teacher's input. logits: [n, K] of the canonical model on them.

    Raises:
        EngineError: PARITY_FAILED.
    """
    output = canonical.output
    session = forward.stranger_session(forward.with_outputs(original, [output.tail.output]), threads)
    theirs = forward.run_rows(session, values, canonical.declared_batch or canonical.batch)[0].reshape(len(values), -1)
    theirs = (theirs.astype(np.float64) - output.tail.zero_point) * output.tail.scale
    few = values[:PROOF_IMAGES]
    tapped = forward.run_rows(forward.stranger_session(canonical.tapped, threads), few, canonical.batch)[0]
    share = _tapped_parity_error(original)
    bound = PARITY_ERROR * float(np.abs(theirs).max()) + output.tail.step
    _check_close("teacher -> canonical", score_output.as_in_file(logits, output), theirs, bound)
    _check_close(
        "canonical -> tapped", tapped.astype(np.float64), logits[: len(few)], share * float(np.abs(logits).max())
    )


def _tapped_parity_error(original: Any) -> float:
    """How far taps may move the logits, relative to the largest, by the types that the graph rounds to."""
    if any(node.op_type in QUANTISERS for node in original.graph.node):
        return QUANTISED_PARITY_ERROR
    half = any(weight.data_type == onnx.TensorProto.FLOAT16 for weight in original.graph.initializer)
    return HALF_PARITY_ERROR if half else PARITY_ERROR


def _check_close(hop: str, ours: NDArray[np.float64], theirs: NDArray[np.float64], bound: float) -> None:
    error = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else float("inf")
    if not error <= bound:
        raise EngineError(
            "PARITY_FAILED",
            f"Scores differ by up to {error:.3g} on the hop {hop}; {bound:.3g} is allowed.",
            "Export the teacher with its logits as output.",
            hop=hop,
            error=error,
            bound=bound,
        )
