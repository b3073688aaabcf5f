from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from exporters.calibration import METHODS, Observed, observe
from exporters.inference import logits_of, open_model
from exporters.int8_search import Budget, Kept, Trials, compare, mean_divergence, search

GENEROUS = Budget(accuracy=0.5, agreement=0.5)
UNREACHABLE = Budget(accuracy=-1.0, agreement=1.0)  # only a gain of every answer would do


@pytest.fixture(scope="module")
def observed(small_graph: Any) -> Observed:
    return observe(small_graph.model, small_graph.batches, threads=1)


@pytest.fixture(scope="module")
def trials(small_graph: Any) -> Trials:
    reference = logits_of(open_model(small_graph.model, threads=1), small_graph.batches(16))
    return Trials(batches=small_graph.batches, reference=reference, labels=reference.argmax(axis=1), threads=1)


@pytest.mark.parametrize("form", ["int8-cpu", "int8-trt"])
def test_the_better_method_is_kept(small_graph: Any, observed: Observed, trials: Trials, form: str) -> None:
    found = search(small_graph.model, observed, form, trials, GENEROUS)
    assert [method for method, _ in found.tried] == list(METHODS)
    best = min(found.tried, key=lambda row: row[1].rank())
    assert (found.method, found.kept) == best
    assert found.within
    assert found.taken_out == ()


def test_a_budget_out_of_reach_is_said_and_at_most_half_of_the_nodes_go(
    small_graph: Any, observed: Observed, trials: Trials
) -> None:
    found = search(small_graph.model, observed, "int8-trt", trials, UNREACHABLE)
    assert not found.within
    assert len(found.taken_out) <= 2  # of two convolutions, an addition and the classifier
    assert found.kept.rank() <= min(row.rank() for _, row in found.tried)


def test_nodes_are_taken_out_where_the_budget_is_missed(
    small_graph: Any, observed: Observed, trials: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A range a thousand times too wide leaves the second convolution's output a single step.
    convolution = [n for n in small_graph.model.graph.node if n.op_type == "Conv"][1]
    spoiled = replace(
        observed,
        lowest={**observed.lowest, convolution.output[0]: -1000.0},
        highest={**observed.highest, convolution.output[0]: 1000.0},
    )
    monkeypatch.setattr("exporters.int8_search.METHODS", ("minmax",))
    budget = Budget(accuracy=0.02, agreement=0.98)
    found = search(small_graph.model, spoiled, "int8-trt", trials, budget)
    assert found.tried[0][1].agreement < 0.98
    assert found.taken_out
    assert found.kept.agreement > found.tried[0][1].agreement


def test_a_search_that_runs_out_of_time_goes_on_with_what_it_measured(
    small_graph: Any, observed: Observed, trials: Trials
) -> None:
    found = search(small_graph.model, observed, "int8-trt", replace(trials, seconds=0.0), UNREACHABLE)
    assert (found.measured, found.nodes) == (1, 4)
    assert found.cut_short()
    assert len(found.taken_out) <= 1


def test_the_search_says_how_many_nodes_it_measured(small_graph: Any, observed: Observed, trials: Trials) -> None:
    said: list[tuple[int, int]] = []
    watched = replace(trials, report=lambda done, total: said.append((done, total)))
    found = search(small_graph.model, observed, "int8-trt", watched, UNREACHABLE)
    assert said == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not found.cut_short()


def test_what_is_kept_of_fp32_is_counted_in_images() -> None:
    before = np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]], np.float32)
    after = np.array([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]], np.float32)
    kept = compare(before, after, np.array([0, 1, 0, 0]))
    assert (kept.agreement, kept.accuracy_lost) == (0.75, 0.25)
    # KL of (e^2, 1) / (1 + e^2) from its mirror: 2 (e^2 - 1) / (e^2 + 1) = 1.5231883119, for one image of four.
    assert kept.kl == pytest.approx(1.5231883119 / 4, rel=1e-6)


def test_divergence_of_equal_logits_is_zero_whatever_is_added_to_them() -> None:
    logits = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    assert mean_divergence(logits, logits + np.float32(3.0)) == pytest.approx(0.0, abs=1e-6)


def test_a_budget_bounds_both_accuracy_and_agreement() -> None:
    budget = Budget(accuracy=0.006, agreement=0.97)
    assert Kept(agreement=0.98, kl=0.0, accuracy_lost=0.006).within(budget)
    assert not Kept(agreement=0.98, kl=0.0, accuracy_lost=0.007).within(budget)
    assert not Kept(agreement=0.96, kl=0.0, accuracy_lost=-0.01).within(budget)
