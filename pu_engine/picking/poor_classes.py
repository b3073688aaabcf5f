"""Classes that the pool cannot fill, with the nearest that it has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pu_engine.picking.content_scores import energy
from pu_engine.picking.pick_types import PoorClass

NAMED_CLASSES = 8


def poor_classes(
    wanted: NDArray[np.int64], classes: NDArray[np.int32], logits: Iterable[NDArray[np.floating]], *,
    keys: Sequence[str], names: Sequence[str],
) -> tuple[PoorClass, ...]:  # fmt: skip
    """Every class of which the pool has fewer images than are wanted of it, the poorest first.

    The nearest is, of the images that the teacher takes for another class, the one to which it gives this class the
    largest probability.

    Args:
        wanted: images of each class, [K].
        classes: the teacher's class of each pool image, [N].
        logits: of image and mirror, chunks [n, 2, K] in pool order.
        keys: of the pool images. names: of the classes.
    """
    available = np.bincount(classes, minlength=wanted.size)
    poor = np.flatnonzero(available < wanted)
    poor = poor[np.lexsort((poor, available[poor]))]
    if not poor.size:
        return ()
    best, row = np.full(poor.size, -1.0), np.zeros(poor.size, dtype=np.int64)
    start = 0
    for chunk in logits:
        mine = classes[start : start + len(chunk)]
        probability = np.exp(chunk.mean(axis=1, dtype=np.float64) - energy(chunk)[:, None])[:, poor]
        probability[mine[:, None] == poor] = -1.0
        first = probability.argmax(axis=0)
        largest = probability[first, np.arange(poor.size)]
        better = largest > best
        best, row = np.where(better, largest, best), np.where(better, start + first, row)
        start += len(chunk)
    nearest, likely = row.tolist(), best >= 0
    return tuple(
        PoorClass(
            name=names[k],
            available=int(available[k]),
            wanted=int(wanted[k]),
            nearest=keys[nearest[i]] if likely[i] else None,
            nearest_class=names[int(classes[nearest[i]])] if likely[i] else None,
            nearest_probability=float(best[i]) if likely[i] else None,
        )
        for i, k in enumerate(poor.tolist())
    )


def poor_class_warning(found: Sequence[PoorClass]) -> list[str]:
    """One warning that names them."""
    if not found:
        return []
    named = ", ".join(
        f"{poor.name} ({poor.available} of {poor.wanted}{_nearest(poor)})" for poor in found[:NAMED_CLASSES]
    )
    rest = f" and {len(found) - NAMED_CLASSES} more" if len(found) > NAMED_CLASSES else ""
    return [f"The teacher finds fewer pool images than their share of: {named}{rest}."]


def _nearest(poor: PoorClass) -> str:
    if poor.nearest is None:
        return ""
    return f"; nearest {poor.nearest}, taken for {poor.nearest_class}"
