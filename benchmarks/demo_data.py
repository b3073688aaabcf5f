"""The demo's world, made without a download: real handwritten digits, and a teacher trained on half of them.

scikit-learn carries 1,797 handwritten digits of 8x8 pixels and two photographs. The digits play the user's images;
the pool mixes the unlabelled ones with crops of the photographs and printed letters. What is what stays in
`truth.csv`, which only the demo's own measuring reads.
"""

from __future__ import annotations

import csv
import io
import tarfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps
from sklearn.datasets import load_digits, load_sample_images
from torch import nn

SIDE = 16  # 8x8 would leave the student's last maps two pixels wide
DIGIT_MAXIMUM = 16.0
CLASSES = 10
TEACHER_IMAGES, TEST_IMAGES, LABELLED_PER_CLASS = 898, 400, 20
PHOTOGRAPH_CROPS, LETTERS = 1800, 1800
# I and O are no other shapes than 1 and 0.
ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghjkmnpqrstuvwxyz"
TEACHER_EPOCHS, TEACHER_BATCH = 12, 64

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoData:
    """Paths of the files, and the digits kept apart for the test."""

    teacher: Path
    labelled: Path  # a folder a class
    pool: Path  # a tar
    truth: dict[str, str]  # member of the pool -> digit-<class>, photograph or letter
    test_images: Pixels  # [N, SIDE, SIDE, 1]
    test_labels: NDArray[np.int64]


def make(folder: Path, seed: int) -> DemoData:
    """Write teacher, labelled images and pool below `folder`."""
    generator = np.random.default_rng(seed)
    digits = load_digits()
    images = np.stack([_upscaled(d / DIGIT_MAXIMUM) for d in digits.images])
    labels = digits.target.astype(np.int64)
    order = generator.permutation(len(images))
    train, test = order[:TEACHER_IMAGES], order[TEACHER_IMAGES : TEACHER_IMAGES + TEST_IMAGES]
    labelled = np.concatenate([train[labels[train] == k][:LABELLED_PER_CLASS] for k in range(CLASSES)])
    rest = np.setdiff1d(order, np.concatenate([labelled, test]))
    folder.mkdir(parents=True, exist_ok=True)
    for index in labelled:
        path = folder / "labelled" / str(labels[index]) / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(images[index]))
    members = [(images[i], f"digit-{labels[i]}") for i in rest]
    members += [(crop, "photograph") for crop in photograph_crops(PHOTOGRAPH_CROPS, generator)]
    members += [(letter, "letter") for letter in letters(LETTERS, generator)]
    truth = _write_pool(folder / "pool.tar", [members[i] for i in generator.permutation(len(members))])
    with (folder / "truth.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("member", "what"), *truth.items()])
    train_teacher(images[train], labels[train], folder / "teacher.onnx", seed)
    return DemoData(
        teacher=folder / "teacher.onnx",
        labelled=folder / "labelled",
        pool=folder / "pool.tar",
        truth=truth,
        test_images=images[test][..., None],
        test_labels=labels[test],
    )


def photograph_crops(count: int, generator: np.random.Generator) -> list[Pixels]:
    """Random crops of scikit-learn's two photographs, gray, [SIDE, SIDE] each."""
    photographs = [Image.fromarray(p).convert("L") for p in load_sample_images().images]
    crops = []
    for _ in range(count):
        photograph = photographs[generator.integers(len(photographs))]
        side = int(generator.integers(SIDE, 160))
        left = int(generator.integers(photograph.width - side))
        top = int(generator.integers(photograph.height - side))
        crop = photograph.crop((left, top, left + side, top + side))
        crops.append(np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR)))
    return crops


def letters(count: int, generator: np.random.Generator) -> list[Pixels]:
    """Printed letters, turned a little, as coarse as the digits: 8x8 before they are brought to [SIDE, SIDE]."""
    drawn = []
    for _ in range(count):
        canvas = Image.new("L", (64, 64))
        font = ImageFont.load_default(float(generator.integers(48, 68)))
        letter = ALPHABET[generator.integers(len(ALPHABET))]
        ImageDraw.Draw(canvas).text((32, 32), letter, fill=255, font=font, anchor="mm", stroke_width=2)
        turned = canvas.rotate(float(generator.uniform(-15, 15)), Image.Resampling.BILINEAR)
        # As the digits were made: cropped to the ink, then brought to 8x8.
        coarse = ImageOps.pad(turned.crop(turned.getbbox()), (8, 8), Image.Resampling.BILINEAR)
        drawn.append(_upscaled(np.asarray(coarse) / 255.0))
    return drawn


def train_teacher(images: Pixels, labels: NDArray[np.int64], path: Path, seed: int) -> None:
    """Train a convolutional network on labelled digits and export it as any user would.

    Args:
        images: [N, SIDE, SIDE].
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # these layers are small: threads that wait for each other cost more than they do
    network = nn.Sequential(
        *(_convolution(1, 32), _convolution(32, 64), nn.MaxPool2d(2)),
        *(_convolution(64, 128), nn.MaxPool2d(2), _convolution(128, 256)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, CLASSES)),
    )
    inputs = torch.from_numpy(images).unsqueeze(1).float() / 255
    targets = torch.from_numpy(labels)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for _ in range(TEACHER_EPOCHS):
        for batch in torch.split(torch.randperm(len(inputs)), TEACHER_BATCH):
            optimiser.zero_grad()
            torch.autograd.backward(F.cross_entropy(network(inputs[batch]), targets[batch]))
            optimiser.step()
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's exporter about torch itself
        torch.onnx.export(
            network, (inputs[:2],), path, input_names=["image"], output_names=["scores"],
            dynamic_shapes=({0: "batch"},), dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def _upscaled(coarse: NDArray[np.float64]) -> Pixels:
    image = Image.fromarray(np.rint(255 * coarse).astype(np.uint8))
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _png(image: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _write_pool(path: Path, members: list[tuple[Pixels, str]]) -> dict[str, str]:
    """A tar whose names say nothing; returns what each member is."""
    truth = {}
    with tarfile.open(path, "w") as tar:
        for number, (image, what) in enumerate(members):
            data = _png(image)
            entry = tarfile.TarInfo(f"{number:06d}.png")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
            truth[entry.name] = what
    return truth
