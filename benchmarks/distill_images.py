"""Training sets of the distillation benchmarks: pools as the selection benchmark draws them, with their pixels.

Asking the teacher and picking need the engine and the data; what comes of it is kept in the cache as plain arrays, from
which a set is put together in a second, on another machine too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quickstart import read_members
from benchmarks.selection_images import Sizes, Source, first_labelled, read
from benchmarks.selection_scores import DrawnPool, Scored, draw, open_teacher, scored
from pu_engine.imaging.images import decode_resized
from pu_engine.results import write_atomic
from pu_engine.scores.score_files import CLEAN_VIEW
from pu_engine.scores.scorer import Scorer
from pu_engine.training.batches import Part
from pu_engine.types import Teacher

SIDE = 32
HELD_OUT_SHARE = 10  # one labelled image in ten is watched, not trained on
LABELLED, ORIGINALS, TEST = "labelled", "originals", "test"
SHOWN = (LABELLED, "mixed", "natural", "junk", ORIGINALS, TEST)

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What training must know of the teacher."""

    classes: int
    class_names: tuple[str, ...]
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Images:
    """Every source as training sees it: pixels uint8 [n, 32, 32, 3], the teacher's logits [n, 2, K] and last tap
    [n, W], and labels [n] where it has some.
    """

    facts: Facts
    arrays: Mapping[str, Part]
    relations: NDArray[np.str_]  # of the natural pool's images to the teacher's classes; measures only

    def part(self, source: str, rows: Rows, *, labelled: bool) -> Part:
        """Rows of one source as a part of a training set."""
        whole = self.arrays[source]
        return Part(
            images=whole.images[rows],
            targets=whole.targets[rows],
            labels=whole.labels[rows] if labelled else np.zeros(0, np.int64),
            features=None if whole.features is None else whole.features[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """Images of several sources: [n, 2], which source, and its row; how often each is drawn, where not all alike."""

    sources: tuple[str, ...]
    origin: Rows
    weights: NDArray[np.float32] | None = None

    def part(self, images: Images) -> Part:
        """The picked part of a training set."""
        parts = [
            images.part(name, self.origin[self.origin[:, 0] == i, 1], labelled=False)
            for i, name in enumerate(self.sources)
        ]
        back = np.argsort(np.concatenate([np.flatnonzero(self.origin[:, 0] == i) for i in range(len(self.sources))]))
        return Part(
            images=np.concatenate([p.images for p in parts])[back],
            targets=np.concatenate([p.targets for p in parts])[back],
            labels=np.zeros(0, np.int64),
            weights=self.weights,
            features=np.concatenate([p.features for p in parts if p.features is not None])[back],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChosenSet:
    """The training set of one run: rows of the source `labelled`, and what was picked."""

    labelled: Rows
    picked: Chosen

    def parts(self, images: Images) -> tuple[Part, Part, Part]:
        """Labelled images to train on, those to watch, and the picked ones."""
        watched = np.arange(len(self.labelled)) % HELD_OUT_SHARE == 0
        return (
            images.part(LABELLED, self.labelled[~watched], labelled=True),
            images.part(LABELLED, self.labelled[watched], labelled=True),
            self.picked.part(images),
        )

    def write(self, path: Path) -> None:
        """Keep the set."""
        weights = np.zeros(0, np.float32) if self.picked.weights is None else self.picked.weights
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".part").open("wb") as file:
            np.savez(
                file, labelled=self.labelled, sources=np.array(self.picked.sources), origin=self.picked.origin,
                weights=weights,
            )  # fmt: skip
        path.with_suffix(".part").rename(path)


def read_set(path: Path) -> ChosenSet:
    """A set that was kept."""
    with np.load(path) as kept:
        picked = Chosen(
            sources=tuple(map(str, kept["sources"])), origin=kept["origin"],
            weights=kept["weights"] if len(kept["weights"]) else None,
        )  # fmt: skip
        return ChosenSet(labelled=kept["labelled"], picked=picked)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Asked:
    """The teacher with what it said of each source, all that picking needs."""

    scorer: Scorer
    scored: Mapping[str, Scored]

    @property
    def teacher(self) -> Teacher:
        """What intake found."""
        return self.scorer.teacher


def ask(
    data: Path, teacher: Path, part: str, *, sizes: Sizes, originals: int, cache: Path, threads: int, folder: Path
) -> Asked:  # fmt: skip
    """Read all sources, ask the teacher, and keep in `folder` what training needs.

    Args:
        originals: training images for the upper bound, alike for each class, none of them labelled.
    """
    scorer, scores = open_teacher(teacher, first_labelled(data), cache)
    sources = read(data, part, sizes)
    sources[ORIGINALS] = _originals(data, originals, set(sources[LABELLED].files))
    sources[TEST] = _source(TEST, list(read_members(data / "cifar10-test.tar.gz")))
    asked = Asked(
        scorer=scorer, scored={name: scored(sources[name], scorer, scores, threads) for name in SHOWN}
    )  # fmt: skip
    if not is_kept(folder):
        keep_images(asked, folder)
    return asked


def is_kept(folder: Path) -> bool:
    """Whether all that training needs is there."""
    return (folder / "teacher.json").is_file()


def keep_images(asked: Asked, folder: Path) -> None:
    """Write each source's arrays, and last what the teacher is."""
    folder.mkdir(parents=True, exist_ok=True)
    widths = [tap.width for tap in asked.teacher.taps]
    last_tap = slice(sum(widths[:-1]), sum(widths))  # spreads follow
    for name, found in asked.scored.items():
        labels = [asked.teacher.class_order[label] for label in found.source.labels]
        pixels = [decode_resized(file, SIDE, SIDE, 3, "stretch") for file in found.source.files]
        np.save(folder / f"{name}.pixels.npy", np.stack(pixels))
        np.save(folder / f"{name}.logits.npy", found.logits)
        np.save(folder / f"{name}.features.npy", found.features[:, CLEAN_VIEW, last_tap])
        np.save(folder / f"{name}.labels.npy", np.array(labels, np.int64))
    np.save(folder / "relations.npy", np.array(asked.scored["natural"].source.relations))
    facts = Facts(
        classes=asked.teacher.classes, class_names=asked.teacher.class_names, accuracy=asked.teacher.accuracy
    )  # fmt: skip
    write_atomic(folder / "teacher.json", json.dumps(asdict(facts)).encode())


def load_images(folder: Path) -> Images:
    """What `keep_images` wrote."""
    facts = json.loads((folder / "teacher.json").read_text())
    arrays = {
        name: Part(
            images=np.load(folder / f"{name}.pixels.npy", mmap_mode="r"),
            targets=np.load(folder / f"{name}.logits.npy"),
            labels=np.load(folder / f"{name}.labels.npy"),
            features=np.load(folder / f"{name}.features.npy"),
        )
        for name in SHOWN
    }
    return Images(
        facts=Facts(**facts | {"class_names": tuple(facts["class_names"])}), arrays=arrays,
        relations=np.load(folder / "relations.npy"),
    )  # fmt: skip


def draw_pool(asked: Asked, pool: str, *, a_class: int, sizes: Sizes, seed: int, work: Path) -> DrawnPool:
    """The pool and the labelled images of one seed."""
    return draw(pool, asked.scored, a_class=a_class, sizes=sizes, seed=seed, scorer=asked.scorer, work=work)


def chosen_rows(drawn: DrawnPool, rows: Rows, weights: NDArray[np.float32] | None = None) -> Chosen:
    """Rows of a drawn pool; `weights` [N] of the whole pool."""
    return Chosen(sources=drawn.sources, origin=drawn.origin[rows], weights=None if weights is None else weights[rows])


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
