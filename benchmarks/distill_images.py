"""Training sets of the distillation benchmarks: pools as the selection benchmark draws them, with their pixels.

All that the teacher says and all pixels are kept in the cache; a set is put together from them in a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quickstart import read_members
from benchmarks.selection_images import Sizes, Source, first_labelled, read
from benchmarks.selection_scores import DrawnPool, Scored, draw, open_teacher, scored
from pu_engine.array_file import is_whole
from pu_engine.batches import Part
from pu_engine.images import decode_resized
from pu_engine.score_files import CLEAN_VIEW
from pu_engine.scorer import Scorer
from pu_engine.types import Teacher

SIDE = 32
HELD_OUT_SHARE = 10  # one labelled image in ten is watched, not trained on
ORIGINALS, TEST = "originals", "test"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Images:
    """Every source with what the teacher says of it and its pixels, uint8 [n, 32, 32, 3]."""

    scorer: Scorer
    folder: Path
    scored: Mapping[str, Scored]
    pixels: Mapping[str, NDArray[np.uint8]]

    @property
    def teacher(self) -> Teacher:
        """What intake found."""
        return self.scorer.teacher

    def labels(self, source: str) -> NDArray[np.int64]:
        """The teacher's output index of each image of a labelled source."""
        return np.array([self.teacher.class_order[label] for label in self.scored[source].source.labels], np.int64)

    def part(self, source: str, rows: NDArray[np.int64], *, labelled: bool) -> Part:
        """Rows of one source as a part of a training set."""
        return Part(
            images=self.pixels[source][rows],
            targets=self.scored[source].logits[rows],
            labels=self.labels(source)[rows] if labelled else np.zeros(0, np.int64),
            features=self.features(source, rows),
        )

    def features(self, source: str, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """The teacher's last tap, [n, W]."""
        return self.scored[source].features[rows, CLEAN_VIEW, -self.teacher.taps[-1].width :]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """One pool drawn by a seed, with the labelled images to train on and those to watch."""

    pool: DrawnPool
    labelled: Part
    held_out: Part


def read_images(
    data: Path, teacher: Path, part: str, *, sizes: Sizes, originals: int, cache: Path, threads: int
) -> Images:
    """Read all sources and ask the teacher; what was done before is taken from the cache.

    Args:
        originals: training images for the upper bound, alike for each class, none of them labelled.
    """
    scorer, folder = open_teacher(teacher, first_labelled(data), cache)
    sources = read(data, part, sizes)
    sources[ORIGINALS] = _originals(data, originals, set(sources["labelled"].files))
    sources[TEST] = _source(TEST, list(read_members(data / "cifar10-test.tar.gz")))
    found = {name: scored(source, scorer, folder, threads) for name, source in sources.items()}
    return Images(
        scorer=scorer, folder=folder, scored=found,
        pixels={name: _pixels(folder / f"{part}-{name}-{len(s.files)}.pixels.npy", s) for name, s in sources.items()},
    )  # fmt: skip


def draw_set(images: Images, pool: str, *, a_class: int, sizes: Sizes, seed: int, work: Path) -> Drawn:
    """The pool and the labelled images of one seed."""
    sources = {name: images.scored[name] for name in ("labelled", "mixed", "natural", "junk")}
    drawn = draw(pool, sources, a_class=a_class, sizes=sizes, seed=seed, scorer=images.scorer, work=work)
    watched = np.arange(len(drawn.labelled)) % HELD_OUT_SHARE == 0
    return Drawn(
        pool=drawn,
        labelled=images.part("labelled", drawn.labelled[~watched], labelled=True),
        held_out=images.part("labelled", drawn.labelled[watched], labelled=True),
    )


def picked_part(images: Images, drawn: DrawnPool, rows: NDArray[np.int64], weights: NDArray[np.float32] | None) -> Part:
    """Rows of a drawn pool as the picked part of a training set."""
    origin = drawn.origin[rows]
    parts = [images.part(name, origin[origin[:, 0] == i, 1], labelled=False) for i, name in enumerate(drawn.sources)]
    back = np.argsort(np.concatenate([np.flatnonzero(origin[:, 0] == i) for i in range(len(drawn.sources))]))
    return Part(
        images=np.concatenate([p.images for p in parts])[back],
        targets=np.concatenate([p.targets for p in parts])[back],
        labels=np.zeros(0, np.int64),
        weights=None if weights is None else weights[rows],
        features=np.concatenate([p.features for p in parts if p.features is not None])[back],
    )


def _originals(data: Path, count: int, labelled: set[bytes]) -> Source:
    by_class: dict[str, list[tuple[str, bytes]]] = {}
    for name, content in read_members(data / "cifar10-train.tar.gz"):
        if content not in labelled:
            by_class.setdefault(Path(name).parent.name, []).append((name, content))
    each = count // len(by_class)
    return _source(ORIGINALS, [row for _, rows in sorted(by_class.items()) for row in sorted(rows)[:each]])


def _source(name: str, members: Sequence[tuple[str, bytes]]) -> Source:
    return Source(
        name=name, files=tuple(content for _, content in members), labels=tuple(Path(n).parent.name for n, _ in members)
    )


def _pixels(path: Path, source: Source) -> NDArray[np.uint8]:
    shape = (len(source.files), SIDE, SIDE, 3)
    if not is_whole(path, shape, np.uint8):
        np.save(path, np.stack([decode_resized(file, SIDE, SIDE, 3, "stretch") for file in source.files]))
    pixels: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return pixels
