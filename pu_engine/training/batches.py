"""Which images each training step sees: a function of the seed and the step, so that a resumed run needs no state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pu_engine.training.augmentation import Crops, crop, draw_crops
from pu_engine.training.device_copy import sent
from pu_engine.training.distill_types import DistillationOptions
from pu_engine.training.mixing import Mixing, draw_mixing, mix_images, mix_targets
from pu_engine.training.processes import ALONE, Processes

LABELLED_STREAM, PICKED_STREAM, VIEW_STREAM, DROPOUT_STREAM, NOISE_STREAM, BANK_STREAM = range(6)
# A rare class is shown at most this many times as often as its images alone would be.
MOST_REPEATED = 10.0
CPU = torch.device("cpu")

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One part of a training set, read from its files as it is needed.

    V is 2 (image and mirror), or the size of a bank of views; `images` then holds each view, [n, V, S, S, C].
    """

    images: NDArray[np.uint8]  # [n, S, S, C]
    targets: NDArray[np.float32]  # [n, V, K], teacher's logits
    labels: NDArray[np.int64]  # [n]; empty where there are none
    weights: NDArray[np.float32] | None = None  # [n], how often each is drawn; None: all alike
    features: NDArray[np.float16] | None = None  # [n, W], the teacher's last tap, for hints

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """One step's images, labelled ones first."""

    images: Tensor  # uint8 [B, S, S, C]
    targets: Tensor  # float32 [B, K]; [B, 0] where a live teacher is yet to be asked
    labels: Tensor  # int64 [L], of the first L images
    features: Tensor | None = None  # float32 [B, W]
    partner_labels: Tensor | None = None  # int64 [L], of what is mixed in
    share: float = 1.0  # of each image itself in a mixed one
    # How much the mean over this process's rows, and over its labelled ones, counts in the mean over the processes, for
    # that to be the mean over the whole batch's.
    rows_weight: float = 1.0
    labels_weight: float = 1.0

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        features, partner = self.features, self.partner_labels
        return replace(
            self,
            images=sent(self.images, device),
            targets=sent(self.targets, device),
            labels=sent(self.labels, device),
            features=None if features is None else sent(features, device),
            partner_labels=None if partner is None else sent(partner, device),
        )


class Draws:
    """An endless sequence of rows: shuffled epochs, in which a row comes in proportion to its weight.

    Args:
        weights: [n], >= 0; None shows each row once an epoch.
    """

    def __init__(self, n: int, weights: NDArray[np.floating] | None, *, seed: int, stream: int) -> None:
        self._n, self._seed, self._stream = n, seed, stream
        self._ends = None if weights is None else np.cumsum(weights, dtype=np.float64)
        self._held: tuple[int, Rows] = (-1, np.zeros(0, np.int64))

    def take(self, start: int, count: int) -> Rows:
        """Places `start` to `start + count` of the sequence, [count]."""
        taken: list[Rows] = [np.zeros(0, np.int64)]
        while count:
            epoch, offset = divmod(start, self._n)
            taken.append(self._epoch(epoch)[offset : offset + count])
            start, count = start + len(taken[-1]), count - len(taken[-1])
        return np.concatenate(taken)

    def _epoch(self, epoch: int) -> Rows:
        if self._held[0] != epoch:
            generator = np.random.default_rng(derived_seed(self._seed, self._stream, epoch))
            if self._ends is None:
                self._held = epoch, generator.permutation(self._n)
            else:
                # Systematic: no row comes more than one time more or less often than its weight says.
                places = (np.arange(self._n) + generator.random()) * (self._ends[-1] / self._n)
                rows = np.searchsorted(self._ends, places, side="right").clip(max=self._n - 1)
                self._held = epoch, generator.permutation(rows)
        return self._held[1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """What a step draws for its whole batch, before anything is read."""

    rows: list[Rows]  # of each part
    view: Tensor  # int64 [B]: 1 for a mirror; of a bank the view
    crops: Crops | None  # None: of a bank
    mixing: Mixing | None


class Sampler:
    """The batches of one training set, by step: of each, the rows that are this process's.

    Args:
        scale: of the cached targets.
        device: where images are cropped and mixed, the same to the bit on each.
        processes: that share the batch. Each draws the whole of it and reads its own rows.
    """

    def __init__(
        self,
        labelled: Part,
        picked: Part,
        options: DistillationOptions,
        seed: int,
        scale: float = 1.0,
        *,
        device: torch.device = CPU,
        processes: Processes = ALONE,
    ) -> None:
        self._parts = labelled, picked
        self._options, self._seed, self._scale, self._device = options, seed, scale, device
        count = labelled_rows(options.batch_size, options.labelled_share, len(labelled), len(picked))
        self._counts = count, options.batch_size - count
        weights = draw_weights(picked, options.draws)
        self._draws = (
            Draws(len(labelled), None, seed=seed, stream=LABELLED_STREAM),
            Draws(len(picked), weights, seed=seed, stream=PICKED_STREAM),
        )
        own_labelled, own_picked = processes.own_rows(self._counts)
        self._own = torch.from_numpy(np.concatenate([own_labelled, count + own_picked]))
        self._own_labelled = torch.from_numpy(own_labelled)
        self._rows_weight = processes.count * len(self._own) / options.batch_size
        self._labels_weight = processes.count * len(own_labelled) / count if count else 1.0

    def batch(self, step: int, *, live: bool = False) -> Batch:
        """The batch of a step: each image cropped and mirrored at random, then mixed where the options say so.

        Args:
            live: leave the targets out; the teacher will be asked for the views themselves.
        """
        shown, options = self._draw(step), self._options
        labels = torch.from_numpy(self._parts[0].labels[shown.rows[0]])
        own_labels = sent(labels[self._own_labelled], self._device)
        if shown.mixing is None:
            images, targets, features = self._read(shown, self._own)
            targets = targets[:, :0] if live else targets
            return self._weighed(Batch(images=images, targets=targets, labels=own_labels, features=features))

        # Partners may be other processes' rows; what is both is read once.
        partner, share = shown.mixing.partner, shown.mixing.share
        needed, place = torch.unique(torch.cat([self._own, partner[self._own]]), return_inverse=True)
        images, targets, features = self._read(shown, needed)
        place = sent(place, self._device)
        own, other = place[: len(self._own)], place[len(self._own) :]
        mixed = Batch(
            images=mix_images(images[own], images[other], shown.mixing),
            targets=targets[own, :0]
            if live
            else mix_targets(targets[own], targets[other], share, options.loss.temperature),
            labels=own_labels,
            features=None if features is None else share * features[own] + (1.0 - share) * features[other],
            partner_labels=sent(labels[partner[self._own_labelled]], self._device),
            share=share,
        )
        return self._weighed(mixed)

    def _weighed(self, batch: Batch) -> Batch:
        return replace(batch, rows_weight=self._rows_weight, labels_weight=self._labels_weight)

    def _draw(self, step: int) -> Shown:
        counts, options = self._counts, self._options
        rows = [draws.take(step * count, count) for draws, count in zip(self._draws, counts, strict=True)]
        generator = torch.Generator().manual_seed(derived_seed(self._seed, VIEW_STREAM, step))
        size, views = self._parts[0].images.shape[-2], self._parts[0].targets.shape[1]
        banked = self._parts[0].images.ndim == 5
        crops = None if banked else draw_crops(options.batch_size, size, generator)
        view = crops.mirrored if crops else torch.randint(0, views, (options.batch_size,), generator=generator)
        mixed = options.mixup or options.cutmix
        mixing = draw_mixing(counts, size, options.mixup, options.cutmix, generator) if mixed else None
        return Shown(rows=rows, view=view, crops=crops, mixing=mixing)

    def _read(self, shown: Shown, places: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Views of some of a batch's images, uint8 [n, S, S, C], the teacher's logits of them, float32 [n, K], and its
        features.

        Args:
            places: in the batch, ascending, so that labelled ones come first.
        """
        at, view = places.numpy(), shown.view[places].numpy()
        first = int(np.searchsorted(at, self._counts[0]))
        own = shown.rows[0][at[:first]], shown.rows[1][at[first:] - self._counts[0]]
        views = view[:first], view[first:]
        read = [
            (part.images[rows] if shown.crops else part.images[rows, which], part.targets[rows, which])
            for part, rows, which in zip(self._parts, own, views, strict=True)
        ]
        images, targets = (
            sent(torch.from_numpy(np.concatenate(arrays)), self._device) for arrays in zip(*read, strict=True)
        )
        if self._scale != 1.0:
            targets = targets * self._scale
        if shown.crops:
            images = crop(images, shown.crops.at(places))
        return images, targets, self._features(own)

    def _features(self, own: Sequence[Rows]) -> Tensor | None:
        found = [part.features[rows] for part, rows in zip(self._parts, own, strict=True) if part.features is not None]
        return sent(torch.from_numpy(np.concatenate(found)), self._device).float() if len(found) == 2 else None


def load_part(folder: Path, name: str, *, labelled: bool, bank: bool = False) -> Part:
    """A part of a training set by the names that gathering gives its files; images and targets stay on disk.

    Args:
        bank: take its bank of views, images and targets.
    """
    labels = np.load(folder / f"{name}.labels.npy") if labelled else np.zeros(0, np.int64)
    weights = folder / f"{name}.weights.npy"
    arrays = f"{name}.bank" if bank else name
    return Part(
        images=np.load(folder / f"{arrays}.images.npy", mmap_mode="r"),
        targets=np.load(folder / f"{arrays}.targets.npy", mmap_mode="r"),
        labels=labels,
        weights=np.load(weights) if weights.exists() else None,
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


def draw_weights(picked: Part, draws: str) -> NDArray[np.float64] | None:
    """How often each picked image is drawn, [n], by the option `draws`; None where all are alike.

    `weighted` takes the weights that selection gave; `balanced` also brings the teacher's classes to equal shares.
    """
    if not len(picked):
        return None
    given = None if picked.weights is None or np.ptp(picked.weights) == 0 else picked.weights.astype(np.float64)
    if draws != "balanced":
        return given if draws == "weighted" else None
    base = np.ones(len(picked)) if given is None else given
    classes = picked.targets.mean(axis=1).argmax(axis=1)
    mass = np.bincount(classes, weights=base)
    factor = mass.sum() / (np.count_nonzero(mass) * np.maximum(mass, mass.sum() * 1e-12))
    return np.asarray(base * np.minimum(factor, MOST_REPEATED)[classes], dtype=np.float64)


def derived_seed(*parts: int) -> int:
    """A 64-bit seed from whole numbers >= 0, each combination its own."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])
