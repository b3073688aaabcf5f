"""Pictures for the report: of each class the best picks, the last ones taken and the worst ones left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_engine.imaging.images import Pixels
from pu_engine.imaging.thumbnails import thumbnail

SHOWN_CLASSES = 12
SHOWN_ANSWERS = 24
BEST, BORDERLINE, REJECTED, LABELLED = 4, 3, 3, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRows:
    """The columns of selection.parquet that the report shows, in pool order."""

    score: NDArray[np.float64]
    class_index: NDArray[np.int64]
    probability: NDArray[np.float64]
    picked: NDArray[np.bool_]
    why: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRows:
    """Rows of the pool to show for one class."""

    class_index: int
    best: tuple[int, ...]
    borderline: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One image of the report; `source` is a data URI."""

    source: str
    caption: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One held-out labelled image, `source` is a data URI, with what it is and what either network says."""

    source: str
    label: str
    teacher: str
    student: str


def shown_answers(labels: NDArray[np.int64], teacher: NDArray[np.int64], student: NDArray[np.int64]) -> tuple[int, ...]:
    """Rows to show, the telling ones first: where the two differ, where both are wrong, then the others.

    Args:
        labels, teacher, student: [n] output indices.
    """
    telling = np.where(teacher != student, 0, np.where(student != labels, 1, 2))
    return _integers(np.argsort(telling, kind="stable")[:SHOWN_ANSWERS])


def shown_classes(picked: Sequence[int]) -> tuple[int, ...]:
    """Output indices to show: all of them, or evenly from the most to the least picked, in index order."""
    if len(picked) <= SHOWN_CLASSES:
        return tuple(range(len(picked)))
    by_count = np.argsort(-np.asarray(picked), kind="stable")
    places = np.linspace(0, len(picked) - 1, SHOWN_CLASSES).round().astype(int)
    return tuple(sorted(int(c) for c in by_count[places]))


def class_rows(rows: SelectionRows, class_index: int) -> ClassRows:
    """The best picks, the lowest picks that are not among them, and the lowest of those not picked."""
    of_class = np.flatnonzero(rows.class_index == class_index)
    falling = of_class[np.argsort(-rows.score[of_class], kind="stable")]
    taken, left = falling[rows.picked[falling]], falling[~rows.picked[falling]]
    best = taken[:BEST]
    return ClassRows(
        class_index=class_index,
        best=_integers(best),
        borderline=_integers(taken[len(best) :][-BORDERLINE:]),
        rejected=_integers(left[-REJECTED:]),
    )


def picture(rows: SelectionRows, row: int, image: Pixels) -> Picture:
    """A pool image with its score below it and the rest of its row as the title."""
    return Picture(
        source=thumbnail(image),
        caption=f"{rows.score[row]:.3g}",
        title=f"score {rows.score[row]:.6g}, probability {rows.probability[row]:.3f}, {rows.why[row]}",
    )


def _integers(values: NDArray[np.int64]) -> tuple[int, ...]:
    return tuple(int(v) for v in values)
