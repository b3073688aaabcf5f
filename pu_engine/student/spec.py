"""What a student is, beside its weights."""

from __future__ import annotations

from torch import nn

from pu_engine.student.catalogue import count_macs, count_parameters
from pu_engine.types import Preprocessing, StudentSpec, TrainingSet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GRAY_MEAN, GRAY_STD = (0.5,), (0.5,)


def describe(name: str, module: nn.Module, arrays: TrainingSet, class_names: tuple[str, ...]) -> StudentSpec:
    """What is needed to build the network again and to feed it."""
    gray = arrays.channels == 1
    return StudentSpec(
        name=name,
        size=arrays.size,
        channels=arrays.channels,
        classes=arrays.classes,
        parameters=count_parameters(module),
        macs=count_macs(module, arrays.size, arrays.channels),
        preprocessing=Preprocessing(
            layout="NCHW",
            channels="GRAY" if gray else "RGB",
            scale=1 / 255,
            mean=GRAY_MEAN if gray else IMAGENET_MEAN,
            std=GRAY_STD if gray else IMAGENET_STD,
            dtype="float32",
            height=arrays.size,
            width=arrays.size,
            fit=arrays.fit,
        ),
        class_names=class_names,
    )
