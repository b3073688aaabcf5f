"""A student's answers on uint8 images."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pu_engine.training.batches import Part
from pu_engine.types import Preprocessing

EVALUATION_BATCH = 256
EVALUATION_PIXELS = EVALUATION_BATCH * 128**2  # larger images come in smaller batches, which hold no more than these


def model_input(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """uint8 [N, S, S, C] to float32 [N, C, S, S] in channels-last memory, as the student takes it."""
    mean, std = normalisation(preprocessing, images.device)
    return ((images.float() * preprocessing.scale - mean) / std).permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=8)
def normalisation(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation on the device; kept, for to send them there in every step would wait for it."""
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (preprocessing.mean, preprocessing.std))
    return mean.to(device), std.to(device)


def predict(module: nn.Module, images: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Logits [N, K] in eval mode, on the CPU; the module's mode is kept."""
    was_training = module.training
    device = next(module.parameters()).device
    batch = max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // max(1, images.shape[1] * images.shape[2])))
    module.eval()
    with torch.no_grad():
        parts = [
            module(model_input(torch.from_numpy(images[i : i + batch].copy()).to(device), preprocessing))
            for i in range(0, len(images), batch)
        ]
    module.train(was_training)
    return torch.cat(parts).float().cpu()


def agreement_with_teacher(module: nn.Module, part: Part, preprocessing: Preprocessing) -> float:
    """Share of images on which student and teacher name the same class."""
    chosen = predict(module, part.images, preprocessing).argmax(dim=1).numpy()
    return float((chosen == part.targets[:, 0].argmax(axis=1)).mean())
