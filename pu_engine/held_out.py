"""Which labelled images are put aside before anything looks at them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

HELD_OUT_SHARE = 0.1
FEWEST = 2
FEW_IMAGES = 5  # a class with fewer gives only one


def split(labels: Sequence[str], seed: int) -> list[bool]:
    """Whether each labelled image is held out: 10 % of each class, at least two, one where there are fewer than five.

    A class of a single image keeps it: it could not be learned otherwise.

    Args:
        labels: one a labelled image, in reading order.
        seed: the same labels and seed give the same split.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    generator = np.random.default_rng(seed)
    held_out = [False] * len(labels)
    for label in sorted(members):
        own = members[label]
        count = 1 if len(own) < FEW_IMAGES else max(FEWEST, round(HELD_OUT_SHARE * len(own)))
        for position in generator.permutation(len(own))[: min(count, len(own) - 1)]:
            held_out[own[int(position)]] = True
    return held_out
