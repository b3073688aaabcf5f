"""The images that selection is measured on, the development's apart from the report's.

What a part holds: candidates for the user's labelled images and for the mixed-in share (training images of CIFAR-10),
four shards of the natural pool, and junk. `truth.csv` says of natural images what they show, to measure only.
"""

from __future__ import annotations

import csv
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import selection_junk
from benchmarks.quickstart import read_members
from pu_engine.imaging.images import decode

SHARDS = {"development": range(4), "report": range(4, 8)}
# Training images of one part: no other part's, and none of the labelled lists'.
OTHER_LABELLED_A_CLASS = 100
DRAW_SEED = 12
JUNK_SOURCES = 2000
POOL_QUALITY, POOL_CHROMA = 75, 2  # of the natural pool's JPEG files; Pillow's number for 4:2:0


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Encoded images; `labels` of training images, `relations` (in, near, out) of the natural pool's."""

    name: str
    files: tuple[bytes, ...]
    labels: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Images of each source; a fifth of the pool is mixed in, three quarters of it are junk."""

    pool: int
    share_mixed: float = 0.2

    @property
    def mixed(self) -> int:
        """Images of the labelled images' own source in the pool `mix`."""
        return round(self.pool * self.share_mixed)

    @property
    def junk(self) -> int:
        """Junk images in the pool `wild`."""
        return self.pool * 3 // 4


def read(data: Path, part: str, sizes: Sizes) -> dict[str, Source]:
    """The sources `labelled`, `mixed`, `unseen`, `refiled`, `natural` and `junk` of one part; a fifth more of what is
    mixed in and of junk than is drawn.

    `unseen` are of the labelled images' source too, but the teacher never trained on them; `refiled` are the mixed
    images with the natural pool's size and JPEG.
    """
    labelled, mixed = _training_images(data, part, sizes.mixed * 6 // 5)
    unseen = _test_images(data, part, sizes.mixed * 6 // 5)
    refiled = Source(name="refiled", files=tuple(map(_refiled, mixed.files)), labels=mixed.labels)
    natural = _natural(data, part, sizes.pool)
    generator = np.random.default_rng([DRAW_SEED, SHARDS[part].start])
    chosen = generator.permutation(len(natural.files))[:JUNK_SOURCES]
    pixels = [_square(decode(natural.files[i], 3)) for i in chosen]
    junk = tuple(selection_junk.files(part, pixels, sizes.junk * 6 // 5, generator))
    sources = (labelled, mixed, unseen, refiled, natural, Source(name="junk", files=junk))
    return {s.name: s for s in sources}


def first_labelled(data: Path) -> dict[str, list[bytes]]:
    """The images of labelled-100.txt by class, for the teacher's intake."""
    wanted = set((data / "labelled-100.txt").read_text().split())
    found: dict[str, list[bytes]] = {}
    for name, content in read_members(data / "cifar10-train.tar.gz"):
        if name in wanted:
            found.setdefault(_label(name), []).append(content)
    return dict(sorted(found.items()))


def _training_images(data: Path, part: str, mixed: int) -> tuple[Source, Source]:
    """Labelled candidates (100 a class of the list, 100 others) and images to mix in, alike for each class."""
    listed = set((data / "labelled-100.txt").read_text().split())
    by_class: dict[str, list[tuple[str, bytes]]] = {}
    for name, content in read_members(data / "cifar10-train.tar.gz"):
        by_class.setdefault(_label(name), []).append((name, content))
    candidates: list[tuple[str, bytes]] = []
    others: list[tuple[str, bytes]] = []
    for number, (_, images) in enumerate(sorted(by_class.items())):
        rest = [image for image in sorted(images) if image[0] not in listed]
        order = np.random.default_rng([DRAW_SEED, number]).permutation(len(rest))
        half = len(rest) // 2
        mine = [rest[i] for i in (order[:half] if part == "development" else order[half:])]
        candidates += [image for image in sorted(images) if image[0] in listed] + mine[:OTHER_LABELLED_A_CLASS]
        others += mine[OTHER_LABELLED_A_CLASS : OTHER_LABELLED_A_CLASS + mixed // len(by_class)]
    return _training_source("labelled", candidates), _training_source("mixed", others)


def _test_images(data: Path, part: str, count: int) -> Source:
    """Test images, unlabelled: one part's are not the other's."""
    images = sorted(read_members(data / "cifar10-test.tar.gz"))
    order = np.random.default_rng([DRAW_SEED, len(images)]).permutation(len(images))
    half = len(images) // 2
    chosen = order[:half] if part == "development" else order[half:]
    return Source(name="unseen", files=tuple(images[i][1] for i in chosen[:count]))


def _refiled(file: bytes) -> bytes:
    side = selection_junk.SIDE
    larger = Image.fromarray(decode(file, 3)).resize((side, side), Image.Resampling.BICUBIC)
    made = io.BytesIO()
    larger.save(made, "JPEG", quality=POOL_QUALITY, subsampling=POOL_CHROMA)
    return made.getvalue()


def _training_source(name: str, images: list[tuple[str, bytes]]) -> Source:
    return Source(name=name, files=tuple(c for _, c in images), labels=tuple(_label(n) for n, _ in images))


def _natural(data: Path, part: str, count: int) -> Source:
    with (data / "truth.csv").open() as file:
        truth = {(row["shard"], row["key"]): row["relation"] for row in csv.DictReader(file)}
    files: list[bytes] = []
    relations: list[str] = []
    for number in SHARDS[part]:
        shard = f"shard-{number:03}.tar"
        with tarfile.open(data / "pool" / shard) as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None and len(files) < count:
                    files.append(content.read())
                    relations.append(truth[shard, Path(member.name).stem])
    return Source(name="natural", files=tuple(files), relations=tuple(relations))


def _square(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    side = selection_junk.SIDE
    if image.shape[:2] != (side, side):
        raise ValueError(f"a pool image has {image.shape[:2]} pixels, {side} x {side} were expected")
    return image


def _label(name: str) -> str:
    return Path(name).parent.name
