"""What a finished compression found, from its report.json and samples.json.

A stage's process wrote both, and it may have run a stranger's model: they are read with bounds, and what is not of
the right form is refused as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from server.child_text import readable
from server.folders import read_bounded

REPORT_BYTES, SAMPLES_BYTES = 16 << 20, 16 << 20
TEXT_CHARACTERS = 400
IMAGE_SOURCE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}\Z")
T = TypeVar("T")
GROUPS = (("labelled", "yours"), ("best", "best picks"), ("borderline", "last taken"), ("rejected", "lowest, left out"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The teacher or the student, on the same held-out images."""

    name: str
    accuracy: float
    parameters: int
    macs: int
    milliseconds: float | None  # one image


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassBalance:
    """How much of a class the pool has and the selection took."""

    name: str
    picked: int
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The median time of one image, at a batch and with so many threads."""

    batch: int
    threads: int
    milliseconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRow:
    """An exported file with its timings."""

    name: str
    path: str
    target: str
    precision: str
    size: int
    recommended: bool
    withheld: bool
    verified: bool
    timings: tuple[Timing, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The report's figures that the page shows."""

    teacher: Network
    student: Network
    low: float
    high: float
    held_out: int
    held_out_agreement: float
    score: str
    why: str
    picked: int
    pool_images: int
    prior: float | None
    classes: tuple[ClassBalance, ...]
    variants: tuple[VariantRow, ...]
    teacher_timings: tuple[Timing, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A small picture; `source` is a data URI."""

    source: str
    caption: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPictures:
    """The pictures of one class by group, each with its heading."""

    name: str
    picked: int
    available: int
    groups: tuple[tuple[str, tuple[Picture, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A held-out image with what it is and what either network says."""

    source: str
    label: str
    teacher: str
    student: str

    @property
    def wrong(self) -> bool:
        return self.student != self.label


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Pictures of the pool and of the held-out images."""

    classes: tuple[ClassPictures, ...]
    held_out: tuple[Answer, ...]


class NotReadable(ValueError):
    """A child's file is not of the form that the page shows."""


def read_outcome(path: Path) -> Outcome:
    """The figures of report.json; raises NotReadable, or OSError where it is missing or too large."""
    return _read(path, REPORT_BYTES, _outcome)


def read_samples(path: Path) -> Samples:
    """The pictures of samples.json; raises NotReadable, or OSError where it is missing or too large."""
    return _read(path, SAMPLES_BYTES, _samples)


def _read(path: Path, limit: int, parse: Callable[[Any], T]) -> T:
    content = read_bounded(path, limit)
    try:
        return parse(json.loads(content))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError, ZeroDivisionError) as error:
        raise NotReadable(f"{path.name} is not of the form that the page shows ({type(error).__name__})") from error


def _outcome(report: Mapping[str, Any]) -> Outcome:
    teacher, student, selection = report["teacher"], report["student"], report["selection"]
    speed = student["speed"] or {}
    timings = _timings(report["latencies"])
    names = [_text(name) for name in teacher["class_names"]]
    return Outcome(
        teacher=_network(teacher, teacher["held_out_accuracy"], speed.get("teacher_ms")),
        student=_network(student, student["accuracy"], speed.get("student_ms")),
        low=float(student["accuracy_low"]),
        high=float(student["accuracy_high"]),
        held_out=int(student["held_out"]),
        held_out_agreement=float(student["held_out_agreement"]),
        score=_text(selection["score"]),
        why=_text(selection["why"]),
        picked=int(selection["picked"]),
        pool_images=int(selection["pool_images"]),
        prior=None if selection["prior"] is None else float(selection["prior"]),
        classes=_balance(names, selection["class_counts"], selection["class_available"]),
        variants=tuple(_variant(row, timings) for row in report["variants"]),
        teacher_timings=timings.get("teacher", ()),
    )


def class_balance(selection: Mapping[str, Any], class_names: Sequence[Any]) -> tuple[ClassBalance, ...]:
    """The balance as soon as the selection has ended, from its result; raises NotReadable."""
    try:
        names = [_text(name) for name in class_names]
        return _balance(names, selection["class_counts"], selection["class_available"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise NotReadable(f"the selection has no class balance ({type(error).__name__})") from error


def _balance(names: Sequence[str], picked: Sequence[Any], available: Sequence[Any]) -> tuple[ClassBalance, ...]:
    rows = zip(names, picked, available, strict=True)
    return tuple(ClassBalance(name=name, picked=int(p), available=int(a)) for name, p, a in rows)


def _network(values: Mapping[str, Any], accuracy: Any, milliseconds: Any) -> Network:
    return Network(
        name=_text(values["name"]),
        accuracy=float(accuracy),
        parameters=int(values["parameters"]),
        macs=int(values["macs"]),
        milliseconds=None if milliseconds is None else float(milliseconds),
    )


def _timings(latencies: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Timing, ...]]:
    found: dict[str, tuple[Timing, ...]] = {}
    for row in latencies:
        name, batch = _text(row["subject"]), int(row["batch"])
        timing = Timing(batch=batch, threads=int(row["threads"]), milliseconds=float(row["p50_ms"]) / batch)
        found[name] = (*found.get(name, ()), timing)
    return found


def _variant(row: Mapping[str, Any], timings: Mapping[str, tuple[Timing, ...]]) -> VariantRow:
    name = _text(row["name"])
    return VariantRow(
        name=name,
        path=_text(row["path"]),
        target=_text(row["target"]),
        precision=_text(row["precision"]),
        size=int(row["size"]),
        recommended=bool(row["recommended"]),
        withheld=bool(row["withheld"]),
        verified=bool(row["verified"]),
        timings=timings.get(name, ()),
    )


def _samples(content: Mapping[str, Any]) -> Samples:
    return Samples(
        classes=tuple(_class_pictures(row) for row in content["classes"]),
        held_out=tuple(
            Answer(source=_source(row["source"]), **{k: _text(row[k]) for k in ("label", "teacher", "student")})
            for row in content["held_out"]
        ),
    )


def _class_pictures(row: Mapping[str, Any]) -> ClassPictures:
    return ClassPictures(
        name=_text(row["name"]),
        picked=int(row["picked"]),
        available=int(row["available"]),
        groups=tuple((title, tuple(_picture(p) for p in row[name])) for name, title in GROUPS),
    )


def _picture(row: Mapping[str, Any]) -> Picture:
    return Picture(source=_source(row["source"]), caption=_text(row["caption"]), title=_text(row["title"]))


def _source(value: object) -> str:
    if not isinstance(value, str) or not IMAGE_SOURCE.match(value):
        raise ValueError("not a picture")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return readable(value[:TEXT_CHARACTERS])
