"""The source test on scores whose shares are known."""

from __future__ import annotations

import numpy as np
import pytest

from pu_engine.picking.prior import PriorEstimate
from pu_engine.picking.source_test import SourceTest, gate_is_open, sharpest, source_test


def estimated(alpha: float, bound: float) -> PriorEstimate:
    return PriorEstimate(alpha=alpha, threshold=0.0, bound=bound)


def scores(distance: float, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Labelled and pool images of which `share` are of the source, a classifier with so much between the two."""
    generator = np.random.default_rng(3)
    own = generator.random(20_000) < share
    return generator.normal(distance, 1, 1000), generator.normal(distance * own, 1)


def test_the_gate_opens_where_the_pool_holds_the_source() -> None:
    assert gate_is_open(source_test(0, *scores(5.0, 0.2)).prior)


def test_the_gate_stays_closed_where_it_holds_none() -> None:
    assert not gate_is_open(source_test(0, *scores(5.0, 0.0)).prior)
    assert not gate_is_open(source_test(0, *scores(3.0, 0.0)).prior)


def test_the_gate_needs_an_estimate_that_stands_out_of_its_bound() -> None:
    assert gate_is_open(estimated(0.2, 0.3))
    assert not gate_is_open(estimated(0.01, 0.015))
    assert not gate_is_open(estimated(0.09, 0.25))


def test_a_view_that_hides_the_source_reads_too_much_and_is_not_heard() -> None:
    hidden, clear = source_test(1, *scores(1.0, 0.0)), source_test(0, *scores(4.0, 0.0))
    assert hidden.prior.alpha > 0.1
    assert sharpest([hidden, clear]) == clear
    assert not gate_is_open(clear.prior)


def test_the_first_view_speaks_where_two_say_the_same() -> None:
    first, second = (SourceTest(view=v, prior=estimated(0.1, 0.2), separated=0.8) for v in (0, 1))
    assert sharpest([first, second]) is first


def test_separation_is_an_even_chance_where_both_are_alike() -> None:
    labelled, pool = scores(0.0, 0.0)
    assert source_test(0, labelled, pool).separated == pytest.approx(0.5, abs=0.02)


def test_no_view_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one view"):
        sharpest([])
