from __future__ import annotations

import pytest

from pu_engine.student.search import halving


def recorded(goodness: dict[str, float]) -> tuple[list[tuple[str, int]], object]:
    asked: list[tuple[str, int]] = []

    def score(name: str, steps: int) -> float:
        asked.append((name, steps))
        return goodness[name]

    return asked, score


def test_the_better_half_is_tried_twice_as_long() -> None:
    asked, score = recorded({"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2})
    chosen, found = halving(["a", "b", "c", "d"], 10, score)  # type: ignore[arg-type]
    assert chosen == "b"
    assert asked == [("a", 10), ("b", 10), ("c", 10), ("d", 10), ("b", 20), ("c", 20)]
    assert found["b"] == [(10, 0.4), (20, 0.4)]
    assert found["a"] == [(10, 0.1)]


def test_of_equal_scores_the_earlier_wins() -> None:
    _, score = recorded(dict.fromkeys("abc", 0.5))
    assert halving(["c", "a", "b"], 1, score)[0] == "c"  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_one_is_left_of_any_number(count: int) -> None:
    names = [str(i) for i in range(count)]
    _, score = recorded({name: float(name) for name in names})
    assert halving(names, 1, score)[0] == names[-1]  # type: ignore[arg-type]


def test_a_single_candidate_needs_no_trial() -> None:
    asked, score = recorded({})
    assert halving(["a"], 10, score) == ("a", {"a": []})  # type: ignore[arg-type]
    assert asked == []
