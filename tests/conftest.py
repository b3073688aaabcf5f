"""Fixtures that every kind of test uses: the real data beside the checkout, and a small job made on the spot."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
SIDE = 16
CLASSES = ("amber", "blue", "green", "plum")
TINTS = np.array([[0.9, 0.6, 0.1], [0.1, 0.3, 0.9], [0.2, 0.8, 0.3], [0.7, 0.2, 0.6]])


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and teachers beside the checkout; skips where it is missing."""
    folder = ROOT.parent / "shared"
    if not (folder / "teachers" / "index.json").exists():
        pytest.skip("the real data and teachers (../shared) are not on this machine")
    return folder


@dataclass(frozen=True)
class SmallJob:
    """A teacher of four tinted stripe patterns, its labelled images, and a pool tar."""

    teacher: Path
    images: Path
    pool_tar: Path
    pool_images: int


@pytest.fixture(scope="session")
def small_job(tmp_path_factory: pytest.TempPathFactory) -> SmallJob:
    """A whole job's input, small enough for seconds and real enough for every stage."""
    return make_small_job(tmp_path_factory.mktemp("small-job"), pool_images=6000)


def make_small_job(folder: Path, *, pool_images: int) -> SmallJob:
    """Write teacher, labelled images and pool tar of a small job; the same number gives the same bytes."""
    generator = np.random.default_rng(7)
    write_teacher(folder / "teacher.onnx", generator)
    for index, name in enumerate(CLASSES):
        (folder / "images" / name).mkdir(parents=True)
        for i, image in enumerate(striped_images(np.full(20, index), generator)):
            (folder / "images" / name / f"{i:02d}.png").write_bytes(png(image))
    write_tar(folder / "pool.tar", striped_images(generator.integers(0, len(CLASSES), pool_images), generator))
    return SmallJob(
        teacher=folder / "teacher.onnx",
        images=folder / "images",
        pool_tar=folder / "pool.tar",
        pool_images=pool_images,
    )


def striped_images(labels: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.uint8]:
    """[N, SIDE, SIDE, 3] uint8: tinted stripes whose direction and colour follow the label, with noise."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    angle = labels * np.pi / len(CLASSES)
    phase = generator.uniform(0, 2 * np.pi, len(labels))
    along = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
    wave = 0.5 + 0.4 * np.sin(along + phase[:, None, None])
    images = wave[..., None] * TINTS[labels][:, None, None, :] + generator.normal(0, 0.15, (len(labels), SIDE, SIDE, 3))
    clipped: NDArray[np.uint8] = (np.clip(images, 0, 1) * 255).astype(np.uint8)
    return clipped


def png(image: NDArray[np.uint8]) -> bytes:
    """PNG bytes of one image."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, images: NDArray[np.uint8]) -> None:
    """A plain tar of PNG images."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, image in enumerate(images):
            data = png(image)
            member = tarfile.TarInfo(f"{i:05d}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_teacher(path: Path, generator: np.random.Generator) -> None:
    """A convolutional teacher, trained for a second; it expects ImageNet's mean and std."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, len(CLASSES)),
    )
    labels = generator.integers(0, len(CLASSES), 1024)
    pixels = torch.from_numpy(striped_images(labels, generator)).permute(0, 3, 1, 2).float()
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    inputs, targets = (pixels / 255 - mean) / std, torch.from_numpy(labels)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(120):
        rows = torch.arange(step * 128, step * 128 + 128) % len(inputs)
        optimiser.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(model(inputs[rows]), targets[rows]))
        optimiser.step()
    path.write_bytes(convolutional_onnx({name: value.detach().numpy() for name, value in model.state_dict().items()}))


def convolutional_onnx(weights: Mapping[str, NDArray[np.float32]]) -> bytes:
    """The network of `write_teacher` as ONNX, from its weights; the exporter would take longer than the training."""
    from onnx import TensorProto, helper, numpy_helper

    stride = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["c1"], **stride),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "2.weight", "2.bias"], ["c2"], **stride),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "6.weight", "6.bias"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "striped",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data
