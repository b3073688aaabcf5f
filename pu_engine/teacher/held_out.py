"""Which labelled images are put aside before anything looks at them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

HELD_OUT_SHARE = 0.1
FEWEST = 2
FEW_IMAGES = 5  # a class with fewer gives only one
FEWEST_SINGLES = 20  # classes of one image, from which one in ten can be spared


def split(labels: Sequence[str], digests: Sequence[str], seed: int) -> list[bool]:
    """Whether each labelled image is held out: 10 % of each class, at least two, one where there are fewer than five.

    A class of a single image keeps it: it could not be learned otherwise. Where all classes have one image only, a
    tenth of at least 20 such images is held out. Equal bytes count once and stay on one side; bytes with two labels
    are never held out, as one of the labels is wrong.

    Args:
        labels: one a labelled image, in reading order.
        digests: of each image's bytes.
        seed: the same labels, digests and seed give the same split.
    """
    label_of: dict[str, str] = {}
    doubtful: set[str] = set()
    for label, digest in zip(labels, digests, strict=True):
        if label_of.setdefault(digest, label) != label:
            doubtful.add(digest)
    members: dict[str, list[str]] = defaultdict(list)
    for digest, label in label_of.items():
        if digest not in doubtful:
            members[label].append(digest)
    generator = np.random.default_rng(seed)
    put_aside: set[str] = set()
    for label in sorted(members):
        own = members[label]
        count = 1 if len(own) < FEW_IMAGES else max(FEWEST, round(HELD_OUT_SHARE * len(own)))
        chosen = generator.permutation(len(own))[: min(count, len(own) - 1)]
        put_aside.update(own[int(position)] for position in chosen)
    singles = [own[0] for _, own in sorted(members.items())]
    if not put_aside and len(singles) >= FEWEST_SINGLES:
        chosen = generator.permutation(len(singles))[: max(FEWEST, round(HELD_OUT_SHARE * len(singles)))]
        put_aside.update(singles[int(position)] for position in chosen)
    return [digest in put_aside for digest in digests]
