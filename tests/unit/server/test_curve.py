"""A curve that grows for as long as a training does, and stays small."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.curve import MOST_POINTS, LiveCurve, Point, read_curve, thinned


def point(step: int, loss: float = 1.0) -> Point:
    return Point(step=step, loss=loss)


def test_a_long_training_leaves_a_bounded_curve_that_reaches_from_its_start_to_its_end() -> None:
    curve = LiveCurve()
    for step in range(100_000):
        curve.add(point(step))
    assert MOST_POINTS // 2 <= len(curve.points) <= MOST_POINTS
    assert curve.points[0].step == 0
    assert curve.points[-1].step > 99_000
    between = {b.step - a.step for a, b in zip(curve.points, curve.points[1:], strict=False)}
    assert len(between) == 1


def test_a_roll_back_takes_the_later_points_away() -> None:
    curve = LiveCurve()
    for step in (1, 2, 3, 2):
        curve.add(point(step, loss=float(len(curve.points))))
    assert [p.step for p in curve.points] == [1, 2]
    assert curve.points[-1].loss == 3.0


def test_a_loss_that_is_no_number_is_left_out() -> None:
    curve = LiveCurve()
    curve.add(point(1, float("nan")))
    assert curve.points == []


def test_thinning_keeps_the_first_and_the_last_point() -> None:
    few = thinned([point(step) for step in range(1000)])
    assert len(few) <= MOST_POINTS + 1
    assert (few[0].step, few[-1].step) == (0, 999)
    assert thinned([]) == []


def test_a_finished_curve_is_read_with_its_agreements(tmp_path: Path) -> None:
    file = tmp_path / "curve.jsonl"
    file.write_text('{"step": 1.0, "loss": 2.5}\n{"step": 2.0, "loss": 2.0, "held_out_agreement": 0.5}\n')
    assert read_curve(file) == [Point(step=1, loss=2.5), Point(step=2, loss=2.0, agreement=0.5)]


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"step": 1, "loss": "x"}', '{"step": Infinity, "loss": 1}'])
def test_what_is_no_curve_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "curve.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match="has a row without step and loss"):
        read_curve(file)
