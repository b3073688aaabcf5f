"""Digit classifiers trained in PyTorch, written by its two ONNX exporters."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tests.frameworks.digits import CLASSES, SIDE, Digits, Exported, Pixels, Predict, coloured_digits, convention
from tests.frameworks.digits import gray_digits as gray

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
EPOCHS, BATCH = 8, 64

Prepare = Callable[[Pixels], Tensor]

torch.set_num_threads(1)  # its threads wait for each other by spinning: on shared cores two are slower than one


class Residual(nn.Module):
    """Two convolutions around which the input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))

    def forward(self, maps: Tensor) -> Tensor:
        return torch.relu(maps + self.second(self.first(maps)))


class Transformer(nn.Module):
    """Patches of 4 x 4 pixels, a class token, two encoder layers."""

    def __init__(self, width: int = 32, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, (SIDE // patch) ** 2 + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.places
        scores: Tensor = self.head(self.encoder(tokens)[:, 0])
        return scores


class PixelsInside(nn.Module):
    """Takes [N, H, W, 3] uint8 as a camera gives it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        scores: Tensor = self.network(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
        return scores


class FixedReshape(nn.Module):
    """A reshape that has the batch in it, as traced code often has."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch

    def forward(self, maps: Tensor) -> Tensor:
        return maps.reshape(self.batch if self.training is False else maps.shape[0], -1)


def _residual_network(channels: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(channels, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        Residual(12),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(12, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        Residual(24),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )


def _plain_network(flatten: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        flatten,
        nn.Linear(24 * (SIDE // 4) ** 2, 48),
        nn.ReLU(),
        nn.Linear(48, CLASSES),
    )


def _scaled(mean: tuple[float, ...], std: tuple[float, ...], *, divisor: float = 255.0, bgr: bool = False) -> Prepare:
    def prepare(images: Pixels) -> Tensor:
        values = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / divisor
        values = values.flip(1) if bgr else values
        return (values - torch.tensor(mean).view(1, -1, 1, 1)) / torch.tensor(std).view(1, -1, 1, 1)

    return prepare


def _trained(make: Callable[[], nn.Module], prepare: Prepare, data: Digits, *, epochs: int = EPOCHS) -> nn.Module:
    torch.manual_seed(0)
    network = make().train()
    inputs, labels = prepare(data.images), torch.from_numpy(data.labels)
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(inputs)), BATCH):
            optimiser.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(inputs[rows]), labels[rows]))
            optimiser.step()
        schedule.step()
    return network.eval()


def _predict(network: nn.Module, prepare: Prepare, batch: int | None = None) -> Predict:
    def predict(images: Pixels) -> NDArray[Any]:
        with torch.no_grad():
            values = prepare(images)
            missing = -len(values) % (batch or 1)
            padded = torch.cat([values, values[:1].expand(missing, *values.shape[1:])])
            scores = torch.cat([network(rows) for rows in torch.split(padded, batch or 256)])
            return scores[: len(values)].numpy()

    return predict


def _dynamo(network: nn.Module, example: Tensor, opset: int, batch: int | None = None) -> bytes:
    program = torch.onnx.export(
        network,
        (example[: batch or 2],),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=None if batch else ({0: "batch"},),
        verbose=False,
    )
    assert program is not None
    data: bytes = program.model_proto.SerializeToString()
    return data


def _script(network: nn.Module, example: Tensor, opset: int, batch: int | None = None) -> bytes:
    file: Any = io.BytesIO()  # the older exporter writes to it, whatever the annotation says
    torch.onnx.export(
        network,
        (example[: batch or 2],),
        file,
        dynamo=False,
        opset_version=opset,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes=None if batch else {"image": {0: "n"}, "scores": {0: "n"}},
    )
    data: bytes = file.getvalue()
    return data


def dynamo_residual() -> Exported:
    """Opset 18, ImageNet's mean and std, logits."""
    data, prepare = coloured_digits(), _scaled(IMAGENET_MEAN, IMAGENET_STD)
    network = _trained(_residual_network, prepare, data)
    return Exported(
        file=_dynamo(network, prepare(data.images), 18),
        documented=convention("NCHW", "RGB", 1 / 255, IMAGENET_MEAN, IMAGENET_STD),
        output="logits",
        batch=None,
        predict=_predict(network, prepare),
        taps=2,
    )


def dynamo_bgr_softmax() -> Exported:
    """Opset 20, BGR of 0..255 less Caffe's mean, probabilities, batch fixed to 1."""
    data, prepare = coloured_digits(), _scaled(CAFFE_MEAN_BGR, (1.0,) * 3, divisor=1.0, bgr=True)
    network = nn.Sequential(_trained(_residual_network, prepare, data), nn.Softmax(1)).eval()
    return Exported(
        file=_dynamo(network, prepare(data.images), 20, batch=1),
        documented=convention("NCHW", "BGR", 1.0, CAFFE_MEAN_BGR),
        output="probabilities",
        batch=None,
        predict=_predict(network, prepare),
        taps=2,
    )


def dynamo_uint8_nhwc() -> Exported:
    """Opset 20, pixels as a camera gives them, scaled inside."""
    data = coloured_digits()

    def prepare(images: Pixels) -> Tensor:
        return torch.from_numpy(images.copy())

    network = _trained(lambda: PixelsInside(_plain_network(nn.Flatten())), prepare, data)
    return Exported(
        file=_dynamo(network, prepare(data.images), 20),
        documented=convention("NHWC", "RGB", 1.0, dtype="uint8"),
        output="logits",
        batch=None,
        predict=_predict(network, prepare),
        taps=2,
    )


def dynamo_transformer() -> Exported:
    """Opset 18, a vision transformer on CIFAR's mean and std."""
    data, prepare = coloured_digits(), _scaled(CIFAR_MEAN, CIFAR_STD)
    network = _trained(Transformer, prepare, data, epochs=14)
    return Exported(
        file=_dynamo(network, prepare(data.images), 18),
        documented=convention("NCHW", "RGB", 1 / 255, CIFAR_MEAN, CIFAR_STD),
        output="logits",
        batch=None,
        predict=_predict(network, prepare),
        taps=2,
    )


def script_gray_log_softmax() -> Exported:
    """Opset 11, gray 0..1, log-probabilities."""
    data, prepare = gray(), _scaled((0.0,), (1.0,))
    network = nn.Sequential(_trained(lambda: _residual_network(1), prepare, data), nn.LogSoftmax(1)).eval()
    return Exported(
        file=_script(network, prepare(data.images), 11),
        documented=convention("NCHW", "GRAY", 1 / 255),
        output="log_probabilities",
        batch=None,
        predict=_predict(network, prepare),
        taps=2,
    )


def script_fixed_batch() -> Exported:
    """Opset 13, -1..1, batch fixed to 4 by a reshape in the middle."""
    data, prepare = coloured_digits(), _scaled((0.5,) * 3, (0.5,) * 3)
    network = _trained(lambda: _plain_network(FixedReshape(4)), prepare, data)
    return Exported(
        file=_script(network, prepare(data.images), 13, batch=4),
        documented=convention("NCHW", "RGB", 1 / 127.5, (1.0,)),
        output="logits",
        batch=None,
        predict=_predict(network, prepare, batch=4),
        taps=2,
    )


def script_transformer() -> Exported:
    """Opset 17, a vision transformer with independent sigmoids, batch fixed to 1 and folded into the heads."""
    data, prepare = coloured_digits(), _scaled((0.0,) * 3, (1.0,) * 3)
    network = nn.Sequential(_trained(Transformer, prepare, data, epochs=14), nn.Sigmoid()).eval()
    return Exported(
        file=_script(network, prepare(data.images), 17, batch=1),
        documented=convention("NCHW", "RGB", 1 / 255),
        output="probabilities",
        batch=1,
        predict=_predict(network, prepare),
        taps=2,
        normaliser="sigmoid",
    )


def script_plain() -> tuple[bytes, NDArray[np.float32], Any]:
    """For converters: file at opset 17, calibration rows, and the documented preprocessing (0..1, NCHW, RGB)."""
    data, prepare = coloured_digits(), _scaled((0.0,) * 3, (1.0,) * 3)
    network = _trained(lambda: _plain_network(nn.Flatten()), prepare, data)
    rows = prepare(data.images)
    return _script(network, rows, 17), rows[:200].numpy(), convention("NCHW", "RGB", 1 / 255)
