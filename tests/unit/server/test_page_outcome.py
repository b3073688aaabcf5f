"""What the page believes of the files that a stage wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from server.curve import Point
from server.page.charts import bar, curve
from server.page.outcome import NotReadable, class_balance, read_outcome, read_samples

PICTURE = {"source": "data:image/png;base64,iVBORw0KGgo=", "caption": "0.9", "title": "score 0.9"}


def samples(**change: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"name": "a", "picked": 1, "available": 2, "best": [PICTURE]}
    row |= {group: [] for group in ("labelled", "borderline", "rejected")}
    answer = {"source": PICTURE["source"], "label": "a", "teacher": "a", "student": "b"}
    return {"classes": [row | change], "held_out": [answer]}


def write(folder: Path, content: Any) -> Path:
    file = folder / "samples.json"
    file.write_text(json.dumps(content))
    return file


def test_samples_come_with_their_groups_and_answers(tmp_path: Path) -> None:
    found = read_samples(write(tmp_path, samples()))
    assert dict(found.classes[0].groups)["best picks"][0].caption == "0.9"
    assert found.held_out[0].wrong


@pytest.mark.parametrize(
    "source",
    [
        "https://elsewhere.example/a.png",
        "data:image/svg+xml;base64,PHN2Zz4=",
        "javascript:alert(1)",
        'data:image/png;base64,AAAA" onerror="x',
        "data:image/png;base64,AAAA\n",
        7,
    ],
)
def test_a_picture_that_is_no_inline_png_or_jpeg_is_refused(tmp_path: Path, source: object) -> None:
    with pytest.raises(NotReadable):
        read_samples(write(tmp_path, samples(best=[{**PICTURE, "source": source}])))


@pytest.mark.parametrize("content", [None, [], {}, {"classes": 3}, {"classes": [{}], "held_out": []}, "x"])
def test_files_of_another_form_are_refused_whole(tmp_path: Path, content: Any) -> None:
    for read in (read_samples, read_outcome):
        with pytest.raises(NotReadable):
            read(write(tmp_path, content))


def test_names_that_no_message_holds_are_made_readable(tmp_path: Path) -> None:
    found = read_samples(write(tmp_path, samples(name="a\ud800\0")))
    assert found.classes[0].name == "a??"


def test_a_balance_of_another_length_than_the_classes_is_refused() -> None:
    with pytest.raises(NotReadable):
        class_balance({"class_counts": [1], "class_available": [1]}, ["a", "b"])


def test_bars_and_curves_stay_within_their_box() -> None:
    assert 'width="100.00"' in bar(5.0, 2.0)
    assert 'width="0.00"' in bar(float("nan"), 1.0)
    assert curve([Point(step=1, loss=1.0)]) == ""
    assert curve([Point(step=1, loss=1.0), Point(step=2, loss=1.0)]).count("<polyline") == 1
