"""What the inspection shows of the probed images: confused classes, and pictures with the teacher's guesses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_engine.imaging import labelled
from pu_engine.imaging.images import decode_resized
from pu_engine.imaging.preprocessing import image_channels
from pu_engine.imaging.thumbnails import thumbnail
from pu_engine.teacher.probed import Probed
from pu_engine.types import LabelledImages, Preprocessing

SHOWN_RIGHT, SHOWN_WRONG = 24, 24
GUESSES = 3
SHOWN_PAIRS = 10
PICTURE_PIXELS = 144


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Images of one class that the teacher took for another."""

    label: str
    predicted: str
    images: int
    of: int  # images of the class


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """One class that the teacher thinks of."""

    name: str
    probability: float
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image as the teacher sees it; `source` is a data URI."""

    source: str
    key: str
    label: str
    guesses: tuple[Guess, ...]


def confusions(probed: Probed, class_names: Sequence[str]) -> list[Confusion]:
    """Pairs of classes by how many images of the first were taken for the second, most first."""
    predicted = probed.logits.argmax(axis=1)
    sizes = Counter(row.label for row in probed.rows)
    pairs = Counter(
        (row.label, int(guess)) for row, guess in zip(probed.rows, predicted, strict=True) if row.index != guess
    )
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], -item[1] / sizes[item[0][0]], item[0]))
    return [
        Confusion(label=label, predicted=class_names[guess], images=count, of=sizes[label])
        for (label, guess), count in ordered[:SHOWN_PAIRS]
    ]


def chosen_rows(probed: Probed) -> tuple[list[int], list[int]]:
    """Rows to show: right ones, evenly over the classes; wrong ones, the surest mistakes first."""
    index = np.array([row.index for row in probed.rows])
    predicted = probed.logits.argmax(axis=1)
    sureness = probabilities(probed.logits).max(axis=1)
    turns: Counter[int] = Counter()
    rounds = []
    for row in np.flatnonzero(predicted == index):
        rounds.append((turns[int(index[row])], int(index[row]), int(row)))
        turns[int(index[row])] += 1
    right = sorted(row for _, _, row in sorted(rounds)[:SHOWN_RIGHT])
    wrong = np.flatnonzero(predicted != index)
    wrong = wrong[np.argsort(-sureness[wrong], kind="stable")][:SHOWN_WRONG]
    return sorted(right, key=lambda row: (index[row], row)), [int(row) for row in wrong]


def probabilities(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Softmax over the classes [n, K]."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def samples(
    rows: Sequence[int],
    probed: Probed,
    images: LabelledImages,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
) -> list[Sample]:
    """The images of these rows, fitted to the teacher's input and shown as RGB, with what the teacher says of them.

    Raises:
        EngineError: what reading says of an image.
    """
    keys = {probed.rows[row].key for row in rows}
    height, width, channels = preprocessing.height, preprocessing.width, image_channels(preprocessing)
    pictures = {
        item.key: thumbnail(decode_resized(item.data, height, width, channels, preprocessing.fit), PICTURE_PIXELS)
        for item in labelled.read(images)
        if item.key in keys
    }
    shares = probabilities(probed.logits[list(rows)]) if rows else np.zeros((0, 1))
    found = []
    for row, share in zip(rows, shares, strict=True):
        image = probed.rows[row]
        best = np.argsort(-share, kind="stable")[:GUESSES]
        guesses = tuple(
            Guess(name=class_names[k], probability=float(share[k]), right=int(k) == image.index) for k in best
        )
        found.append(Sample(source=pictures[image.key], key=image.key, label=image.label, guesses=guesses))
    return found
