"""The labelled images that intake looks at: counted, split, and a few of them decoded."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.imaging import images, labelled
from pu_engine.imaging.preprocessing import image_channels
from pu_engine.teacher import held_out
from pu_engine.types import LabelledImages, Preprocessing

FEW_IMAGES = 5
NAMED_CLASSES = 20  # of those with few images


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """All labelled images without their pixels, in reading order."""

    keys: tuple[str, ...]
    labels: tuple[str, ...]
    digests: tuple[str, ...]  # sha256 of each image's bytes
    held_out: tuple[bool, ...]
    native: tuple[int, int]  # height and width that most images have
    sizes: int  # different heights and widths
    warnings: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Distinct labels, sorted."""
        return tuple(sorted(set(self.labels)))


def catalogue(source: LabelledImages, seed: int) -> Catalogue:
    """Read the labelled images once and split them.

    Raises:
        EngineError: IMAGES_MISSING, IMAGES_ONE_CLASS, or what reading says of an image.
    """
    keys, names, digests = [], [], []
    sizes: Counter[tuple[int, int]] = Counter()
    for item in labelled.read(source):
        keys.append(item.key)
        names.append(item.label)
        digests.append(hashlib.sha256(item.data).hexdigest())
        with labelled.named(item.key):
            sizes[images.dimensions(item.data)] += 1
    counts = Counter(names)
    if len(counts) < 2:
        raise EngineError(
            "IMAGES_ONE_CLASS",
            f"All {len(names)} labelled images have the label {names[0]!r}; at least 2 classes are needed.",
            "Give images of every class that the student shall tell apart.",
            label=names[0],
        )
    put_aside = held_out.split(names, digests, seed)
    if not any(put_aside):
        raise EngineError(
            "IMAGES_MISSING",
            f"None of {len(names)} labelled images can be held out for the verdict: no class has two different ones, "
            f"and there are fewer than {held_out.FEWEST_SINGLES} classes.",
            "Give at least two different images of a class; 20 to 100 of each class are better.",
            labelled=len(names),
        )
    few = [f"{name} ({count})" for name, count in sorted(counts.items(), key=_in_reading_order) if count < FEW_IMAGES]
    more = f" and {len(few) - NAMED_CLASSES} more" if len(few) > NAMED_CLASSES else ""
    warnings = [f"Fewer than {FEW_IMAGES} labelled images: {', '.join(few[:NAMED_CLASSES])}{more}."] if few else []
    return Catalogue(
        keys=tuple(keys),
        labels=tuple(names),
        digests=tuple(digests),
        held_out=tuple(put_aside),
        native=max(sizes, key=lambda size: (sizes[size], size)),
        sizes=len(sizes),
        warnings=tuple(warnings),
    )


def _in_reading_order(row: tuple[str, int]) -> tuple[int, str]:
    """Numbers by their value, before names."""
    label, _ = row
    return (int(label), label) if label.isascii() and label.isdigit() else (2**63, label)


def choose(found: Catalogue, count: int, seed: int) -> list[int]:
    """Up to `count` images that are not held out, evenly over the classes; a prefix is evenly spread as well."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, (label, put_aside) in enumerate(zip(found.labels, found.held_out, strict=True)):
        if not put_aside:
            members[label].append(index)
    generator = np.random.default_rng(seed)
    shuffled = [
        [members[label][int(p)] for p in generator.permutation(len(members[label]))] for label in sorted(members)
    ]
    rounds = [own[turn] for turn in range(max(map(len, shuffled))) for own in shuffled if turn < len(own)]
    return rounds[:count]


def decode(source: LabelledImages, chosen: Sequence[int], how: Preprocessing) -> NDArray[np.uint8]:
    """[n, H, W, C] uint8 of the chosen images as a preprocessing fits them, in the order of `chosen`.

    Raises:
        EngineError: IMAGE_REJECTED.
    """
    place = {index: row for row, index in enumerate(chosen)}
    channels = image_channels(how)
    pixels = np.zeros((len(chosen), how.height, how.width, channels), np.uint8)
    for index, item in enumerate(labelled.read(source)):
        if index in place:
            with labelled.named(item.key):
                pixels[place[index]] = images.decode_resized(item.data, how.height, how.width, channels, how.fit)
    return pixels
