"""The int8 file that keeps the most: calibration methods tried, sensitive nodes taken out by measured effect."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.calibration import METHODS, Batches, Observed
from exporters.inference import logits_of, open_model
from exporters.quantisation import FORMS, quantise

VALIDATION_BATCH = 32
RANKED = ("Add", "Conv", "Gemm", "MatMul", "Mul")  # operators whose nodes may be taken out
RANKING_IMAGES = 32
SEARCH_SECONDS = 300.0  # of taking nodes out: then the nodes that were measured have to do
TAKEN_OUT_SHARE = 0.5  # with more of its nodes in float a file is not int8 any more


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trials:
    """What candidates are measured on: images that they were not calibrated with.

    Args:
        batches: the images' input tensors.
        reference: fp32 logits [N, K].
        labels: the right answers [N], true ones or the teacher's.
    """

    batches: Batches
    reference: NDArray[np.float32]
    labels: NDArray[np.int64]
    threads: int
    report: Callable[[int, int], None] = lambda done, total: None  # how many nodes were measured, of how many
    seconds: float = SEARCH_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What int8 may cost on the trial images."""

    accuracy: float  # share of right answers lost, at most
    agreement: float  # share of answers equal to fp32's, at least


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a candidate keeps of fp32."""

    agreement: float
    kl: float  # mean KL(fp32 || candidate), nats
    accuracy_lost: float

    def within(self, budget: Budget) -> bool:
        """Whether it costs no more than it may."""
        return self.accuracy_lost <= budget.accuracy and self.agreement >= budget.agreement

    def rank(self) -> tuple[float, float]:
        """Sorts the candidates, the best first."""
        return (-self.agreement, self.kl)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """The best candidate of a form; `tried` has what each method kept, all nodes quantised.

    `measured` nodes of `nodes` were measured alone: all of them, or those that the time sufficed for; 0 of 0 where the
    budget was met at once.
    """

    model: Any
    method: str
    kept: Kept
    within: bool
    taken_out: tuple[str, ...]
    tried: tuple[tuple[str, Kept], ...]
    measured: int = 0
    nodes: int = 0

    def cut_short(self) -> bool:
        """Whether the time ended the search, so that another run may find another file."""
        return self.measured < self.nodes


def search(model: Any, observed: Observed, form: str, trials: Trials, budget: Budget) -> Found:
    """Quantise by every method, keep the better, and take nodes out until it is within the budget.

    Nodes go in the order of what each alone costs when it is the only one quantised; 1, 2, 4 ... of them, at most half.
    Where that does not do, or the time ends, the best candidate comes back with `within` False.

    Raises:
        ExportError: the graph can't be quantised, or onnxruntime can't run what comes of it.
    """
    tried = []
    for method in METHODS:
        candidate = quantise(model, observed.ranges(method, symmetric=FORMS[form].symmetric), form)
        tried.append((method, candidate, measure(candidate, trials)))
    method, best, kept = min(tried, key=lambda row: row[2].rank())
    taken: tuple[str, ...] = ()
    order, nodes = list[str](), list[str]()
    if not kept.within(budget):
        ranges = observed.ranges(method, symmetric=FORMS[form].symmetric)
        nodes = removable(model, form)
        order = sensitivities(nodes, lambda name: quantise(model, ranges, form, only=[name]), trials)
        count = 1
        while count <= min(TAKEN_OUT_SHARE * len(nodes), len(order)) and not kept.within(budget):
            candidate = quantise(model, ranges, form, without=order[:count])
            measured = measure(candidate, trials)
            if measured.within(budget) or measured.rank() < kept.rank():
                best, kept, taken = candidate, measured, tuple(order[:count])
            count *= 2
    return Found(
        model=best, method=method, kept=kept, within=kept.within(budget), taken_out=taken,
        tried=tuple((name, row) for name, _, row in tried), measured=len(order), nodes=len(nodes),
    )  # fmt: skip


def measure(model: Any, trials: Trials) -> Kept:
    """What a candidate keeps on the trial images."""
    session = open_model(model, threads=trials.threads)
    return compare(trials.reference, logits_of(session, trials.batches(VALIDATION_BATCH)), trials.labels)


def compare(before: NDArray[np.float32], after: NDArray[np.float32], labels: NDArray[np.int64]) -> Kept:
    """What logits [N, K] keep of others, with the right answers [N]."""
    chosen, given = before.argmax(axis=1), after.argmax(axis=1)
    return Kept(
        agreement=float((chosen == given).mean()),
        kl=mean_divergence(before, after),
        accuracy_lost=float((chosen == labels).mean() - (given == labels).mean()),
    )


def mean_divergence(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Mean KL(softmax(before) || softmax(after)) over rows, nats."""
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (_shifted(before), _shifted(after)))
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()))


def removable(model: Any, form: str) -> list[str]:
    """Names of the nodes that may be taken out, in the graph's order."""
    operators = set(RANKED).intersection(FORMS[form].operators)
    return [node.name for node in model.graph.node if node.op_type in operators and _computes(model, node)]


def sensitivities(nodes: Sequence[str], quantise_one: Callable[[str], Any], trials: Trials) -> list[str]:
    """The nodes, the one that costs the most first; without those that the time did not suffice for."""
    started = time.monotonic()
    few = next(trials.batches(RANKING_IMAGES))
    reference = trials.reference[: len(few)]
    costs = dict[str, float]()
    for name in nodes:
        if costs and time.monotonic() - started > trials.seconds:
            break
        session = open_model(quantise_one(name), threads=trials.threads)
        costs[name] = mean_divergence(reference, logits_of(session, iter([few])))
        trials.report(len(costs), len(nodes))
    return sorted(costs, key=lambda name: -costs[name])


def _computes(model: Any, node: Any) -> bool:
    """Whether a node works on float tensors: shape arithmetic has additions and products too."""
    typed: Sequence[Any] = [v for v in (*model.graph.value_info, *model.graph.output) if v.name in node.output]
    return any(value.type.tensor_type.elem_type == 1 for value in typed)


def _shifted(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray(logits.astype(np.float64) - logits.max(axis=1, keepdims=True), np.float64)
