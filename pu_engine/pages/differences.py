"""Where a student differs from its teacher: class by class, and on which images most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_CONFUSIONS, MOST_IMAGES = 12, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Images that the teacher calls one class and the student another, by output index."""

    teacher: int
    student: int
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstImage:
    row: int
    teacher: int
    student: int
    kl: float  # nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """Also `differences.json` of distillation, over the parity images."""

    images: int
    class_images: tuple[int, ...]  # of each class, by the teacher
    class_agreements: tuple[int, ...]  # those of them on which the student says the same
    confusions: tuple[Confusion, ...]  # the most frequent first
    worst: tuple[WorstImage, ...]  # the largest KL first


def differences(teacher: NDArray[np.floating], student: NDArray[np.floating]) -> Differences:
    """Compare logits [N, K] of both on the same images."""
    if teacher.shape != student.shape or teacher.ndim != 2:
        raise ValueError(f"logits must be [N, K] of one shape, got {teacher.shape} and {student.shape}")
    classes = teacher.shape[1]
    said, answered = teacher.argmax(axis=1), student.argmax(axis=1)
    equal = said == answered
    pairs, counts = np.unique(np.stack([said, answered], axis=1)[~equal], axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:MOST_CONFUSIONS]
    kl = _kl(teacher, student)
    rows = [int(row) for row in np.argsort(-kl, kind="stable")[:MOST_IMAGES] if not equal[row]]
    return Differences(
        images=len(teacher),
        class_images=_counts(said, classes),
        class_agreements=_counts(said[equal], classes),
        confusions=tuple(
            Confusion(teacher=int(pairs[i, 0]), student=int(pairs[i, 1]), images=int(counts[i])) for i in order
        ),
        worst=tuple(
            WorstImage(row=row, teacher=int(said[row]), student=int(answered[row]), kl=float(kl[row])) for row in rows
        ),
    )


def _counts(classes: NDArray[np.integer], most: int) -> tuple[int, ...]:
    return tuple(int(n) for n in np.bincount(classes, minlength=most))


def _kl(teacher: NDArray[np.floating], student: NDArray[np.floating]) -> NDArray[np.float64]:
    log_p, log_q = _log_softmax(teacher), _log_softmax(student)
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(axis=1), dtype=np.float64)


def _log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), dtype=np.float64)
