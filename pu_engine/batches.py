"""Which images each training step sees: a function of the seed and the step, so that a resumed run needs no state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_engine.augmentation import augment
from pu_engine.types import DistillationOptions

LABELLED_STREAM, PICKED_STREAM, VIEW_STREAM, DROPOUT_STREAM, NOISE_STREAM = range(5)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One part of a training set, read from its files as it is needed."""

    images: NDArray[np.uint8]  # [n, S, S, C]
    targets: NDArray[np.float32]  # [n, 2, K], teacher's logits of image and mirror
    labels: NDArray[np.int64]  # [n]; empty where there are none

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """One step's images, labelled ones first."""

    images: Tensor  # uint8 [B, S, S, C]
    targets: Tensor  # float32 [B, K]
    labels: Tensor  # int64 [L], of the first L images


def load_part(folder: Path, name: str, *, labelled: bool) -> Part:
    """A part of a training set by the names that gathering gives its files; images and targets stay on disk."""
    labels = np.load(folder / f"{name}.labels.npy") if labelled else np.zeros(0, np.int64)
    return Part(
        images=np.load(folder / f"{name}.images.npy", mmap_mode="r"),
        targets=np.load(folder / f"{name}.targets.npy", mmap_mode="r"),
        labels=labels,
    )


def labelled_rows(batch_size: int, share: float, labelled: int, picked: int) -> int:
    """How many of a batch's images are labelled ones; all where nothing was picked or the share is 1.

    A share between 0 and 1 leaves at least one image of each kind.
    """
    if not picked or (labelled and share == 1.0):
        return batch_size
    if not labelled or not share:
        return 0
    return min(max(1, round(batch_size * share)), batch_size - 1)


def draw(labelled: Part, picked: Part, step: int, options: DistillationOptions, seed: int) -> Batch:
    """The batch of a step: two streams of shuffled epochs, each image cropped and mirrored at random."""
    count = labelled_rows(options.batch_size, options.labelled_share, len(labelled), len(picked))
    first = epoch_indices(len(labelled), step * count, count, seed=seed, stream=LABELLED_STREAM)
    rest = options.batch_size - count
    second = epoch_indices(len(picked), step * rest, rest, seed=seed, stream=PICKED_STREAM)
    images = np.concatenate([labelled.images[first], picked.images[second]])
    targets = np.concatenate([labelled.targets[first], picked.targets[second]])
    generator = torch.Generator().manual_seed(derived_seed(seed, VIEW_STREAM, step))
    views, view_targets = augment(torch.from_numpy(images), torch.from_numpy(targets), generator)
    return Batch(images=views, targets=view_targets, labels=torch.from_numpy(labelled.labels[first]))


def epoch_indices(n: int, start: int, count: int, *, seed: int, stream: int) -> NDArray[np.int64]:
    """Positions `start` to `start + count` of an endless sequence of shuffled epochs over n images."""
    taken: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    while count:
        epoch, offset = divmod(start, n)
        order = np.random.default_rng(derived_seed(seed, stream, epoch)).permutation(n)
        taken.append(order[offset : offset + count])
        start, count = start + len(taken[-1]), count - len(taken[-1])
    return np.concatenate(taken)


def derived_seed(*parts: int) -> int:
    """A 64-bit seed from whole numbers >= 0, each combination its own."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
