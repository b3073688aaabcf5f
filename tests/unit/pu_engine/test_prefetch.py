"""Ordered, bounded work in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pu_engine.prefetch import AHEAD_PER_WORKER, prefetched


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_keep_the_order_of_the_items(workers: int) -> None:
    def slow_for_even(item: int) -> int:
        time.sleep(0.002 if item % 2 == 0 else 0)
        return item * item

    assert list(prefetched(slow_for_even, range(30), workers)) == [i * i for i in range(30)]


def test_no_more_is_read_than_the_bound() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            read.append(i)
            yield i

    results = prefetched(abs, items(), 2)
    next(results)
    assert len(read) == 2 * AHEAD_PER_WORKER + 1
    results.close()  # type: ignore[attr-defined]


def test_error_stands_where_its_result_would() -> None:
    def refuse_three(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    results = prefetched(refuse_three, range(10), 2)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_error_of_the_items_is_raised() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(prefetched(abs, items(), 2))


def test_early_end_leaves_no_threads() -> None:
    before = threading.active_count()
    results = prefetched(abs, range(100), 3)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_no_items_give_no_results() -> None:
    assert list(prefetched(abs, [], 2)) == []
