"""Which output of a teacher holds the scores, and what kind of scores they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_engine.teacher.graph_surgery import (
    TRANSPARENT,
    ScoreTail,
    not_a_classifier,
    producers,
    reads_of,
    score_tail,
)
from pu_engine.teacher.labels import unmappable

SUM_ERROR = 1e-2
SIGMOID_END = 60.0  # beyond it the sigmoid is 0 or 1 in float64 as well
KINDS = {"Softmax": "probabilities", "Sigmoid": "probabilities", "LogSoftmax": "log_probabilities", "": "logits"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOutput:
    """The chosen output."""

    tail: ScoreTail
    kind: str  # of the file as it came: logits | probabilities | log_probabilities
    classes: int
    logarithm: bool  # probabilities without a normaliser to strip


def tails(model: Any) -> list[ScoreTail]:
    """One tail for each output that can be walked back; two outputs of the same logits are one."""
    found: dict[str, ScoreTail] = {}
    for item in model.graph.output:
        tail = score_tail(model, item.name)
        if tail.logits not in found or tail.normaliser:
            found[tail.logits] = tail
    return list(found.values())


def choose(
    model: Any,
    found: Sequence[ScoreTail],
    values: Mapping[str, NDArray[Any]],
    *,
    batch: int,
    labels: int,
    stated: int,
) -> ScoreOutput:
    """The output with one score a class.

    An output from which another is computed holds features. Among the rest, the number of classes decides.

    Args:
        values: of each tail's `output` and `logits` in a run of `batch` images.
        labels: distinct labels of the images. stated: class names stated, 0 for none.

    Raises:
        EngineError: TEACHER_NOT_A_CLASSIFIER, or LABELS_UNMAPPABLE where all have fewer classes than labels.
    """
    fitting = {t.logits: t for t in found if _classes(values[t.logits], batch) >= 2}
    if not fitting:
        shapes = ", ".join(f"{t.output!r} {list(np.shape(values[t.output]))}" for t in found)
        raise not_a_classifier(f"No output holds scores [N, K] of at least 2 classes: {shapes or 'no tensor'}.")
    roots = {name: _root(model, name) for name in fitting}
    last = [name for name in fitting if not any(roots[name] in _ancestors(model, o) for o in fitting if o != name)]
    sizes = {name: _classes(values[name], batch) for name in last}
    large_enough = [name for name in last if sizes[name] >= max(labels, stated)]
    if not large_enough:
        raise unmappable(
            f"There are {labels} labels and {stated} stated class names, but the teacher has {max(sizes.values())} "
            "outputs.",
            classes=max(sizes.values()),
        )
    wanted = stated or labels
    name = min(large_enough, key=lambda n: (not fitting[n].normaliser, sizes[n] not in (wanted, wanted + 1), sizes[n]))
    tail = fitting[name]
    kind = KINDS[tail.normaliser]
    scores = values[tail.output].reshape(batch, -1).astype(np.float64)
    logarithm = False
    if not tail.normaliser:
        kind, logarithm = _numeric_kind((scores - tail.zero_point) * tail.scale)
    return ScoreOutput(tail=tail, kind=kind, classes=sizes[name], logarithm=logarithm)


def _classes(value: Any, batch: int) -> int:
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.ndim < 2 or value.shape[0] != batch:
        return 0
    long_axes = [size for size in value.shape[1:] if size != 1]
    return long_axes[0] if len(long_axes) == 1 else 0


def _root(model: Any, name: str) -> str:
    made = producers(model)
    while name in made and made[name].op_type in TRANSPARENT:
        name = made[name].input[0]
    return name


def _ancestors(model: Any, name: str) -> set[str]:
    made, found, queue = producers(model), set(), [_root(model, name)]
    while queue:
        node = made.get(queue.pop())
        fresh = [n for n in reads_of(node) if n not in found] if node is not None else []
        found.update(fresh)
        queue += fresh
    return found


def _numeric_kind(scores: NDArray[np.float64]) -> tuple[str, bool]:
    """Kind, and whether a logarithm is needed, by the values alone."""
    if (scores >= 0).all() and np.abs(scores.sum(axis=1) - 1).max() < SUM_ERROR:
        return "probabilities", True
    if (scores <= 0).all() and np.abs(np.exp(scores).sum(axis=1) - 1).max() < SUM_ERROR:
        return "log_probabilities", False
    return "logits", False


def as_in_file(logits: NDArray[np.float64], output: ScoreOutput) -> NDArray[np.float64]:
    """What the file's own output would be for these canonical logits: [n, K]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    scores = logits
    if output.logarithm:
        scores = np.exp(logits)
    elif output.tail.normaliser == "Softmax":
        scores = exponentials / sums
    elif output.tail.normaliser == "LogSoftmax":
        scores = shifted - np.log(sums)
    elif output.tail.normaliser == "Sigmoid":
        scores = 1 / (1 + np.exp(-np.clip(logits, -SIGMOID_END, SIGMOID_END)))
    return scores
