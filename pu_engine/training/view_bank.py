"""A bank of views: of each training image a fixed number of crops and mirrors, each scored by the teacher itself.

Between cached targets, which know nothing of the crop, and a live teacher, which is asked in every step.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pu_engine.array_file import ArrayWriter
from pu_engine.imaging.images import resize
from pu_engine.progress import Progress
from pu_engine.scores.scorer import Scorer, open_scorer
from pu_engine.types import GatheringInputs, Teacher

PARTS = ("labelled", "picked")


def write_banks(inputs: GatheringInputs, out: Path, teacher: Teacher, progress: Progress) -> None:
    """Write `<part>.bank.images.npy` and `<part>.bank.targets.npy` from the parts' images in `out`.

    Raises:
        EngineError: MODEL_NONFINITE.
    """
    # Only now: views are drawn by torch, which gathering otherwise does not load.
    import torch

    from pu_engine.training.augmentation import augment
    from pu_engine.training.batches import BANK_STREAM, derived_seed

    scorer = open_scorer(inputs.intake, "cpu", None)
    for number, part in enumerate(PARTS):
        images = np.load(out / f"{part}.images.npy", mmap_mode="r")
        shape = (len(images), inputs.views, *images.shape[1:])
        with (
            ArrayWriter(out / f"{part}.bank.images.npy", shape, np.uint8) as views_file,
            ArrayWriter(out / f"{part}.bank.targets.npy", (*shape[:2], teacher.classes), np.float32) as targets_file,
        ):
            chunk = max(1, scorer.batch // inputs.views)
            for start in range(0, len(images), chunk):
                own = torch.from_numpy(np.repeat(images[start : start + chunk], inputs.views, axis=0))
                seed = derived_seed(inputs.seed, BANK_STREAM, number, start)
                nothing = torch.zeros(len(own), 2, 0)
                views, _ = augment(own, nothing, torch.Generator().manual_seed(seed))
                rows = len(own) // inputs.views
                views_file.append(views.numpy().reshape(rows, *shape[1:]))
                targets_file.append(_logits(scorer, views.numpy()).reshape(rows, inputs.views, -1))
                progress.update(start + rows, len(images), "images")


def _logits(scorer: Scorer, views: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The teacher's logits [n, K] of views [n, S, S, C], at its own size."""
    how = scorer.teacher.preprocessing
    sized = np.stack([resize(view, how.height, how.width) for view in views])
    parts = [scorer.logits(sized[i : i + scorer.batch]) for i in range(0, len(sized), scorer.batch)]
    return np.concatenate(parts)
