"""The inspection's page: whole, from nowhere else, and safe with hostile names."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from pu_engine import inspection
from pu_engine.pages import inspection_page
from pu_engine.pages.inspection_samples import Guess, Sample
from pu_engine.teacher.fact_types import ParserCheck, RefusedNode
from pu_engine.types import Teacher
from tests.unit.conftest import FACTS
from tests.unit.pu_engine.test_inspection import CONFUSIONS, TEACHER

HOSTILE = '<script>alert("1")</script>'
DOT = "data:image/png;base64,iVBORw0KGgo="
REFUSING = ParserCheck(
    parser="TensorRT-RTX 1.7",
    refused=tuple(RefusedNode(node=f"n{i}", operator="Det", reason="no such operator") for i in range(30)),
    refused_nodes=41,
    unchecked="",
)


def page_of(teacher: Teacher = TEACHER, *, wrong: bool = True, name: str = "cat") -> str:
    sample = Sample(source=DOT, key=f"{name}/1", label=name, guesses=(Guess(name=name, probability=0.75, right=True),))
    mistake = dataclasses.replace(sample, guesses=(Guess(name="dog", probability=0.6, right=False),))
    document = inspection.as_json(teacher, CONFUSIONS)
    return inspection_page.render(document, teacher.preprocessing, right=[sample], wrong=[mistake] if wrong else [])


class Tags(HTMLParser):
    VOID = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "action", "srcset", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"line", "rect", "circle"}  # of an SVG

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_tag_is_closed_and_nothing_comes_from_outside() -> None:
    tags = Tags()
    page = page_of()
    tags.feed(page)
    assert tags.open == []
    assert not tags.seen & {"script", "link", "iframe", "object", "form"}
    assert set(tags.links) == {DOT}
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert not re.search(r"https?://|@import|url\(", page)


def test_hostile_names_are_text() -> None:
    teacher = dataclasses.replace(
        TEACHER, display_name=HOSTILE, producer=HOSTILE, class_names=(HOSTILE, "dog"), warnings=(HOSTILE,)
    )
    page = page_of(teacher, name=HOSTILE)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6


def test_page_says_what_was_found() -> None:
    page = page_of()
    for text in (
        "BGR images of 192 × 48 pixels", "90.0 % of 36 labelled images", "turned back to RGB", "x = pixels[..., ::-1]",
        "80.0 % to 95.0 %", "the whole image, resized to 192 × 48 pixels",
        "<code>training</code> = 0", "few images", "flatters it", "relu", "8 × 6 × 24", "4.0 KiB",
        "IR version 8", "ai.onnx 17", "3 of 18", "TensorRT-RTX 1.7 takes every node", "0.5 ms",
    ):  # fmt: skip
        assert text in page, text


def test_teacher_without_mistakes_is_said_to_have_none() -> None:
    assert "None of the images that were looked at was named wrongly." in page_of(wrong=False)


def test_refused_nodes_are_listed_and_counted() -> None:
    page = page_of(dataclasses.replace(TEACHER, facts=dataclasses.replace(FACTS, tensorrt=REFUSING)))
    assert "refuses at least 41 nodes" in page
    assert "20 of 41" in page
    assert page.count("no such operator") == inspection_page.SHOWN_REFUSALS


def test_parser_that_was_not_asked_is_said() -> None:
    check = ParserCheck(parser="", refused=(), refused_nodes=0, unchecked="no TensorRT parser installed")
    page = page_of(dataclasses.replace(TEACHER, facts=dataclasses.replace(FACTS, tensorrt=check)))
    assert "not checked: no TensorRT parser installed" in page


def test_axis_holds_every_interval_and_bars_are_shares_of_the_longest() -> None:
    rows = [
        {"nll": 0.5, "accuracy": 0.9, "accuracy_low": 0.83, "accuracy_high": 0.96},
        {"nll": 2.0, "accuracy": 0.7, "accuracy_low": 0.62, "accuracy_high": 0.8},
    ]
    plot = inspection_page.hypothesis_plot(rows)
    assert plot.axis == pytest.approx((0.6, 1.0))
    assert [row.loss for row in plot.rows] == [0.25, 1.0]
    assert plot.rows[1].accuracy == pytest.approx(0.25)
    assert all(0 <= row.low <= row.accuracy <= row.high <= 1 for row in plot.rows)


def test_log_loss_of_nothing_and_one_image_still_draw() -> None:
    plot = inspection_page.hypothesis_plot([{"nll": 0.0, "accuracy": 1.0, "accuracy_low": 0.2, "accuracy_high": 1.0}])
    assert plot.rows[0].loss == 0.0
    assert plot.rows[0].high == pytest.approx(1.0)
