"""A teacher that is asked while the student trains: its torch twin, beside the student on the same device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pu_engine.errors import EngineError
from pu_engine.imaging.images import resize
from pu_engine.imaging.preprocessing import INTEGER_RANGES
from pu_engine.training.device_copy import sent
from pu_engine.training.evaluation import normalisation
from pu_engine.training.targets import AskTeacher
from pu_engine.twin import torch_twin
from pu_engine.types import Preprocessing


def choose_targets(asked: str, intake: Path, device: torch.device) -> tuple[str, str]:
    """Where the targets come from, and why: cached on a CPU, live on a GPU that holds the teacher's twin."""
    if asked != "auto":
        return asked, "asked for"
    if device.type == "cpu":
        return "cached", "on a CPU a live teacher takes several times the student's own time"
    if not has_twin(intake):
        return "cached", "the teacher has no torch twin"
    return "live", "the teacher's twin runs beside the student on the GPU"


def live_teacher(intake: Path, preprocessing: Preprocessing, device: torch.device) -> AskTeacher:
    """The twin of an intake's teacher, as a function of uint8 images [B, S, S, C]; logits are float32 [B, K].

    A stranger's ONNX file is not run here, for training is confined less than scoring; a twin has our operators only.

    Raises:
        EngineError: REQUEST_INVALID where the teacher has no twin.
    """
    if not has_twin(intake):
        raise EngineError(
            "REQUEST_INVALID",
            "distillation.targets is live, but this teacher has no torch twin.",
            "Take cached targets or a bank of views; `punnet inspect` names the node without a form in torch.",
        )
    teacher = torch_twin.load(intake).to(device).eval()

    def ask(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = teacher(teacher_input(images, preprocessing, device))
        return logits.float()

    return ask


def has_twin(intake: Path) -> bool:
    """Whether intake could write the teacher as a torch module."""
    return (intake / torch_twin.STRUCTURE).is_file()


def teacher_input(images: Tensor, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """The teacher's input of uint8 images [B, S, S, C]; those of another size go through the one resize kernel."""
    if needs_resize(images.shape[1], preprocessing):
        pixels = images.cpu().numpy()
        sized = [resize(image, preprocessing.height, preprocessing.width) for image in pixels]
        images = torch.from_numpy(np.stack(sized))
    return normalised(sent(images, device), preprocessing)


def needs_resize(size: int, preprocessing: Preprocessing) -> bool:
    """Whether square images of a size are not the teacher's."""
    return (size, size) != (preprocessing.height, preprocessing.width)


def normalised(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """What `preprocessing.model_input` gives, to the bit, where the images are."""
    mean, std = normalisation(preprocessing, images.device)
    ordered = images.flip(-1) if preprocessing.channels == "BGR" else images
    values = (ordered.float() * preprocessing.scale - mean) / std
    if preprocessing.layout == "NCHW":
        values = values.permute(0, 3, 1, 2)
    if preprocessing.layout == "flat":
        values = values.flatten(1)
    if preprocessing.dtype in INTEGER_RANGES:
        values = values.round().clamp(*INTEGER_RANGES[preprocessing.dtype])
    return values.to(getattr(torch, preprocessing.dtype)).contiguous()
