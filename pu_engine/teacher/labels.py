"""Which output of the teacher belongs to which label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_engine.errors import EngineError

MAX_ASSIGNED = 300  # the assignment takes cubic time
# An assignment is fitted to the images, so it has to be better than an order that is not, by this much accuracy.
ASSIGNMENT_MARGIN = 0.05
ASSIGNMENT_IMAGES = 3  # a label; with fewer, the halves that check an assignment say nothing

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassOrder:
    """A mapping from labels to output indices, and where it comes from."""

    source: str  # stated | integers | sorted | assigned
    index: Mapping[str, int]
    offset: int = 0

    def of(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Output index of each label."""
        return np.array([self.index[label] for label in labels], np.int64)


def candidate_orders(labels: Sequence[str], class_names: Sequence[str], classes: int) -> list[ClassOrder]:
    """Orders that can be thought of before looking at any score, most credible first.

    Args:
        labels: distinct label names. class_names: as the user stated them, or empty. classes: outputs of the teacher.

    Raises:
        EngineError: LABELS_UNMAPPABLE for more labels than outputs, or stated names that do not fit.
    """
    names = sorted(labels)
    if len(names) > classes:
        raise unmappable(f"There are {len(names)} labels, but the teacher has {classes} outputs.", labels=len(names))
    if class_names:
        return [_stated(names, class_names, classes)]
    if all(name.isascii() and name.isdigit() for name in names):
        numbers = {name: int(name) for name in names}
        if len(set(numbers.values())) < len(numbers):
            raise unmappable(f"Two of the labels {', '.join(names)} are the same number.", labels=len(names))
        # Background first (+1) and counting from one (-1) are told apart from the plain order by the images.
        return [
            ClassOrder(source="integers", index={n: v + offset for n, v in numbers.items()}, offset=offset)
            for offset in (0, 1, -1)
            if all(0 <= v + offset < classes for v in numbers.values())
        ]
    if len(names) == classes:
        return [ClassOrder(source="sorted", index={n: i for i, n in enumerate(names)})]
    if len(names) == classes - 1:
        # The output without a label is told by the images: a background class first, or any class without images.
        return [_sorted_around(names, gap) for gap in (0, classes - 1, *range(1, classes - 1))]
    return []


def _sorted_around(names: Sequence[str], gap: int) -> ClassOrder:
    """Sorted names on all outputs but `gap`."""
    index = {name: i + (i >= gap) for i, name in enumerate(names)}
    return ClassOrder(source="sorted", index=index, offset=1 if gap == 0 else 0)


def _stated(names: Sequence[str], class_names: Sequence[str], classes: int) -> ClassOrder:
    offset = 1 if len(class_names) == classes - 1 else 0
    if len(set(class_names)) != len(class_names) or len(class_names) + offset > classes:
        raise unmappable(
            f"{len(class_names)} class names are stated for a teacher with {classes} outputs, or one is stated twice.",
            class_names=len(class_names),
            classes=classes,
        )
    positions = {name: index + offset for index, name in enumerate(class_names)}
    missing = [name for name in names if name not in positions]
    if missing:
        raise unmappable(f"Label {missing[0]!r} is not among the stated class names.", label=missing[0])
    return ClassOrder(source="stated", index={name: positions[name] for name in names}, offset=offset)


def unmappable(message: str, **details: object) -> EngineError:
    """The labels can't be laid onto the teacher's outputs."""
    return EngineError(
        "LABELS_UNMAPPABLE",
        message,
        "State the teacher's class names in the order of its outputs, or name the folders by output index.",
        **details,
    )


def assign(scores: Scores, labels: Sequence[str]) -> ClassOrder:
    """The one-to-one order under which most images of each label are predicted as that label.

    Args:
        scores: [n, K] logits. labels: [n].
    """
    names = sorted(set(labels))
    if len(names) > MAX_ASSIGNED:
        raise unmappable(
            f"{len(names)} labels are too many to find their order from images; at most {MAX_ASSIGNED}.",
            labels=len(names),
        )
    rows = np.array([names.index(label) for label in labels])
    shares = np.zeros((len(names), scores.shape[1]))
    np.add.at(shares, (rows, scores.argmax(axis=1)), 1.0)
    shares /= np.bincount(rows, minlength=len(names))[:, None]
    # Where no image decides, the mean score does.
    means = np.stack([scores[rows == r].mean(axis=0) for r in range(len(names))])
    spread = float(np.ptp(means)) or 1.0
    columns = assignment(-(shares + 1e-3 * means / spread))
    return ClassOrder(source="assigned", index={name: int(c) for name, c in zip(names, columns, strict=True)})


def assignment(cost: Scores) -> NDArray[np.int64]:
    """Columns of the one-to-one assignment with the smallest sum of costs.

    Source: Jonker and Volgenant 1987, shortest augmenting paths with potentials.

    Args:
        cost: [R, C], R <= C, finite.

    Returns:
        [R] column of each row.
    """
    rows, columns = cost.shape
    row_price, column_price = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, np.int64)  # row of each column, counted from one; column 0 is the start
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        shortest, previous = np.full(columns + 1, np.inf), np.zeros(columns + 1, np.int64)
        done = np.zeros(columns + 1, bool)
        while True:
            done[column] = True
            open_columns = np.flatnonzero(~done[1:]) + 1
            current = owner[column]
            reduced = cost[current - 1, open_columns - 1] - row_price[current] - column_price[open_columns]
            better = reduced < shortest[open_columns]
            shortest[open_columns[better]] = reduced[better]
            previous[open_columns[better]] = column
            nearest = int(open_columns[np.argmin(shortest[open_columns])])
            step = shortest[nearest]
            row_price[owner[done]] += step
            column_price[done] -= step
            shortest[open_columns] -= step
            column = nearest
            if owner[column] == 0:
                break
        while column:
            owner[column] = owner[previous[column]]
            column = int(previous[column])
    result = np.zeros(rows, np.int64)
    taken = np.flatnonzero(owner[1:]) + 1
    result[owner[taken] - 1] = taken - 1
    return result


def accuracy(scores: Scores, order: ClassOrder, labels: Sequence[str]) -> float:
    """Share of images whose highest score is their label's."""
    return float((scores.argmax(axis=1) == order.of(labels)).mean())


def unfitted_accuracy(scores: Scores, order: ClassOrder, labels: Sequence[str]) -> float:
    """Accuracy; of an assigned order, that on images which it was not fitted to."""
    return cross_accuracy(scores, labels) if order.source == "assigned" else accuracy(scores, order, labels)


def best_order(scores: Scores, labels: Sequence[str], orders: Sequence[ClassOrder]) -> ClassOrder:
    """A thought-of order, unless an assignment is clearly better on images that it was not fitted to.

    Args:
        scores: [n, K] logits. orders: `candidate_orders`; a stated one is final.

    Raises:
        EngineError: LABELS_UNMAPPABLE where no order can be thought of and the labels are too many to assign.
    """
    best = max(orders, key=lambda order: accuracy(scores, order, labels), default=None)
    if best is not None:
        few = len(labels) < ASSIGNMENT_IMAGES * len(best.index)
        if best.source == "stated" or few or len(best.index) > MAX_ASSIGNED:
            return best
        if cross_accuracy(scores, labels) <= accuracy(scores, best, labels) + ASSIGNMENT_MARGIN:
            return best
    return assign(scores, labels)


def check_seen(scores: Scores, labels: Sequence[str], order: ClassOrder) -> None:
    """Refuse an assignment in which a label's images are never predicted as that label.

    Raises:
        EngineError: LABELS_UNMAPPABLE with the labels.
    """
    right = scores.argmax(axis=1) == order.of(labels)
    names = np.array(labels)
    unseen = [name for name in order.index if not right[names == name].any()]
    if order.source == "assigned" and unseen:
        raise unmappable(
            f"None of the images labelled {unseen[0]!r} is predicted as one and the same free class.",
            labels=", ".join(unseen),
        )


def cross_accuracy(scores: Scores, labels: Sequence[str]) -> float:
    """Accuracy of an assignment on images that it was not fitted to: halves of each label, both ways."""
    names = np.array(labels)
    half = np.zeros(len(labels), bool)
    for name in set(labels):
        half[np.flatnonzero(names == name)[::2]] = True
    right = 0
    for fitted in (half, ~half):
        if not fitted.any() or fitted.all():
            return 0.0
        order = assign(scores[fitted], list(names[fitted]))
        predicted = scores[~fitted].argmax(axis=1)
        right += sum(order.index.get(n) == p for n, p in zip(names[~fitted], predicted, strict=True))
    return right / len(labels)
