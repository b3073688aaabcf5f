"""Plots as SVG text."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np

from pu_engine.pages import plots
from pu_engine.picking.pick_types import ReliabilityBin
from pu_engine.teacher.fact_types import Latency
from pu_engine.variants.variant_rows import Point

LATENCIES = [
    Latency(subject="teacher", batch=1, threads=1, p50_ms=2.0, p90_ms=2.5, runs=9),
    Latency(subject="fp32", batch=4, threads=2, p50_ms=2.0, p90_ms=2.5, runs=9),
]


def histogram() -> str:
    scores = np.random.default_rng(0).normal(size=500)
    return plots.score_histogram(scores, scores > 0.5, 0.5, "e2")


def texts(svg: str) -> set[str]:
    return {"".join(e.itertext()).strip() for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert histogram() == histogram()


def test_histogram_counts_both_sides_and_marks_the_threshold() -> None:
    found = texts(histogram())
    assert {"picked (155)", "not picked (345)", "lowest picked score", "score (e2)"} <= found


def test_histogram_of_one_repeated_score_is_drawn() -> None:
    assert "picked (3)" in texts(plots.score_histogram(np.full(3, 7.0), np.ones(3, bool), 7.0, "random"))


def test_histogram_shows_the_labelled_images_where_they_have_scores() -> None:
    scores = np.random.default_rng(0).normal(size=500)
    found = texts(plots.score_histogram(scores, scores > 0.5, 0.5, "pu", scores[:40] + 2))
    assert {"labelled (40)", "labelled images", "picked (155)"} <= found


def test_reliability_is_drawn_beside_the_diagonal() -> None:
    bins = [
        ReliabilityBin(pool=900, labelled=3, believed=0.02, read=0.01),
        ReliabilityBin(pool=90, labelled=80, believed=0.93, read=0.99),
    ]
    assert {"as believed", "as the scores say"} <= texts(plots.reliability(bins))


def test_ink_follows_the_page() -> None:
    svg = histogram()
    assert "currentColor" in svg
    assert plots.INK not in svg
    assert "#000000" not in svg


def test_plots_scale_with_the_page() -> None:
    start = histogram()[:400].partition(">")[0]
    assert "viewBox" in start
    assert not re.search(r"\b(width|height)=", start)


def test_no_identifier_is_shared_between_plots() -> None:
    drawn = [
        histogram(),
        plots.class_bars(["a", "b"], [1, 2], [3, 3]),
        plots.training_curve([1, 2], [2, 1], [(1, 0.5)]),
    ]
    ids = [i for svg in drawn for i in set(re.findall(r'\bid="([^"]+)"', svg))]
    assert len(ids) == len(set(ids)) > 3


def test_class_names_are_text_not_mathematics_or_markup() -> None:
    svg = plots.class_bars(["$\\frac", "<b>&"], [1, 2], [3, 3])
    assert {"$\\frac", "<b>&"} <= texts(svg)


def test_names_that_the_font_lacks_are_still_drawn() -> None:
    assert "猫" in texts(plots.class_bars(["猫", "b"], [1, 2], [3, 3]))


def test_long_names_are_cut() -> None:
    assert "a" * 17 + "…" in texts(plots.class_bars(["a" * 50, "b"], [1, 2], [3, 3]))


def test_many_classes_are_sorted_and_nameless() -> None:
    svg = plots.class_bars([f"class{i}" for i in range(200)], list(range(200)), [300] * 200)
    assert "200 classes, by picked images" in texts(svg)
    assert not any(t.startswith("class") for t in texts(svg))


def test_curve_without_agreements_has_one_axis() -> None:
    assert "held-out agreement" not in texts(plots.training_curve([1, 2], [2, 1], []))
    assert "held-out agreement" in texts(plots.training_curve([1, 2], [2, 1], [(2, 0.5)]))


def test_latency_is_given_for_one_image() -> None:
    found = texts(plots.latency_bars(LATENCIES))
    assert {"2 ms", "0.5 ms", "teacher, batch 1, 1 thread", "fp32, batch 4, 2 threads"} <= found


def test_tradeoff_names_every_network_and_its_axes() -> None:
    points = [
        Point(name="teacher", milliseconds=20.0, accuracy=0.95, chosen=False),
        Point(name="int8-cpu", milliseconds=0.5, accuracy=0.9, chosen=True),
    ]
    svg = plots.accuracy_over_latency(points)
    assert {"teacher", "int8-cpu", "held-out accuracy, %"} <= texts(svg)
    assert plots.MARK in svg


def test_tradeoff_of_nothing_timed_is_an_empty_plot() -> None:
    assert "held-out accuracy, %" in texts(plots.accuracy_over_latency([]))
