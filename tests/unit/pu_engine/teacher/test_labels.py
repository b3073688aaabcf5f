"""Orders of labels: thought of, assigned, and refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.teacher import held_out
from pu_engine.teacher.labels import accuracy, assign, assignment, best_order, candidate_orders, check_seen


def scores_for(columns: list[int], classes: int, *, wrong: int = 0) -> NDArray[np.float64]:
    scores = np.random.default_rng(0).normal(0, 0.1, (len(columns), classes))
    scores[np.arange(len(columns)), columns] += 2
    scores[:wrong] = np.roll(scores[:wrong], 1, axis=1)
    return scores


def test_sorted_names_are_tried_with_and_without_background() -> None:
    (plain,) = candidate_orders(["dog", "cat"], (), 2)
    assert (plain.source, plain.index) == ("sorted", {"cat": 0, "dog": 1})
    shifted, plain, between = candidate_orders(["dog", "cat"], (), 3)
    assert (shifted.offset, shifted.index) == (1, {"cat": 1, "dog": 2})
    assert (plain.offset, plain.index) == (0, {"cat": 0, "dog": 1})
    assert (between.offset, between.index) == (0, {"cat": 0, "dog": 2})
    assert candidate_orders(["dog", "cat"], (), 9) == []


def test_numbers_are_tried_plain_with_background_and_from_one() -> None:
    found = candidate_orders(["1", "2", "10"], (), 11)
    assert [(o.offset, o.index["10"]) for o in found] == [(0, 10), (-1, 9)]
    assert [o.offset for o in candidate_orders(["0", "1"], (), 3)] == [0, 1]


def test_stated_names_are_final() -> None:
    (order,) = candidate_orders(["b", "a"], ("b", "x", "a"), 3)
    assert order.index == {"a": 2, "b": 0}
    scores = scores_for([0, 1] * 6, 3)
    assert best_order(scores, ["a", "b"] * 6, [order]) is order
    (background,) = candidate_orders(["a"], ("a", "b"), 3)
    assert background.index == {"a": 1}


@pytest.mark.parametrize(
    ("labels", "stated", "classes"),
    [(["a", "b", "c"], (), 2), (["a", "z"], ("a", "b"), 2), (["a"], ("a", "a"), 2), (["a"], ("a", "b", "c"), 2)],
)
def test_labels_that_do_not_fit_are_refused(labels: list[str], stated: tuple[str, ...], classes: int) -> None:
    with pytest.raises(EngineError) as caught:
        candidate_orders(labels, stated, classes)
    assert caught.value.code == "LABELS_UNMAPPABLE"


@given(st.integers(0, 2**31 - 1), st.integers(1, 5), st.integers(0, 2))
def test_assignment_is_the_cheapest_of_all(seed: int, rows: int, more: int) -> None:
    cost = np.random.default_rng(seed).normal(size=(rows, rows + more))
    found = assignment(cost)
    assert len(set(found.tolist())) == rows
    best = min(sum(cost[r, c] for r, c in enumerate(p)) for p in itertools.permutations(range(rows + more), rows))
    assert cost[np.arange(rows), found].sum() == pytest.approx(best)


def test_assignment_golden() -> None:
    # Brute force over the six permutations: 1 + 2 + 2 = 5 is the smallest sum.
    cost = np.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])
    assert assignment(cost).tolist() == [1, 0, 2]


def test_images_reveal_an_order_that_no_name_does() -> None:
    labels = ["cat", "dog", "eel"] * 8
    order = assign(scores_for([2, 0, 4] * 8, 5, wrong=4), labels)
    assert order.index == {"cat": 2, "dog": 0, "eel": 4}


def test_sorted_order_stays_where_an_assignment_is_hardly_better() -> None:
    labels = ["a", "b", "c"] * 8
    orders = candidate_orders(["a", "b", "c"], (), 3)
    assert best_order(scores_for([0, 1, 2] * 8, 3, wrong=5), labels, orders).source == "sorted"
    permuted = best_order(scores_for([1, 2, 0] * 8, 3), labels, orders)
    assert (permuted.source, permuted.index) == ("assigned", {"a": 1, "b": 2, "c": 0})


def test_background_column_is_found_by_the_images() -> None:
    labels = ["0", "1", "2"] * 5
    order = best_order(scores_for([1, 2, 3] * 5, 4), labels, candidate_orders(["0", "1", "2"], (), 4))
    assert (order.source, order.offset) == ("integers", 1)


@pytest.mark.parametrize(("images", "wrong"), [(1, 0), (3, 12)])
def test_class_without_images_is_no_background_class(images: int, wrong: int) -> None:
    right = {f"n{i:03d}": i for i in range(100) if i != 3}
    labels = list(right) * images
    orders = candidate_orders(list(right), (), 100)
    order = best_order(scores_for([right[name] for name in labels], 100, wrong=wrong), labels, orders)
    assert (order.index, order.offset) == (right, 0)


def test_labels_that_are_the_same_number_are_refused() -> None:
    with pytest.raises(EngineError, match="same number"):
        candidate_orders(["1", "01", "2"], (), 5)


def test_few_images_are_no_ground_for_an_assignment() -> None:
    orders = candidate_orders(["a", "b"], (), 2)
    assert best_order(scores_for([1, 0], 2), ["a", "b"], orders).source == "sorted"


def test_label_that_is_never_predicted_is_unmappable() -> None:
    labels = ["a", "b", "c"] * 6
    scores = scores_for([0, 1, 1] * 6, 5)
    order = assign(scores, labels)
    with pytest.raises(EngineError) as caught:
        check_seen(scores, labels, order)
    assert caught.value.code == "LABELS_UNMAPPABLE"
    assert accuracy(scores, order, labels) == pytest.approx(2 / 3)


def test_held_out_is_stratified_and_seeded() -> None:
    labels = ["a"] * 100 + ["b"] * 10 + ["c"] * 4 + ["d"]
    digests = [str(i) for i in range(len(labels))]
    put_aside = held_out.split(labels, digests, 5)
    counts = {name: sum(h for h, own in zip(put_aside, labels, strict=True) if own == name) for name in "abcd"}
    assert counts == {"a": 10, "b": 2, "c": 1, "d": 0}
    assert held_out.split(labels, digests, 5) == put_aside
    assert held_out.split(labels, digests, 6) != put_aside


def test_equal_bytes_never_fall_on_both_sides() -> None:
    labels, digests = ["a", "b"] * 40, [str(i // 4) + "ab"[i % 2] for i in range(80)]
    for seed in range(5):
        put_aside = dict(zip(digests, held_out.split(labels, digests, seed), strict=True))
        assert [put_aside[d] for d in digests] == held_out.split(labels, digests, seed)
        assert sum(put_aside.values()) == 4


def test_bytes_with_two_labels_are_not_held_out() -> None:
    assert held_out.split(["a", "b", "a", "b", "b"], ["x", "x", "y", "y", "z"], 0) == [False] * 5


def test_tenth_of_the_images_is_held_out_where_every_class_has_one() -> None:
    labels = [f"class {i}" for i in range(40)]
    assert sum(held_out.split(labels, labels, 0)) == 4
    assert not any(held_out.split(labels[:19], labels[:19], 0))
