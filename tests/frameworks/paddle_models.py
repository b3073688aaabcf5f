"""A digit classifier trained in PaddlePaddle, written by paddle2onnx."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle2onnx
from numpy.typing import NDArray
from paddle import nn

from tests.frameworks.digits import CLASSES, SIDE, Exported, Pixels, coloured_digits, convention

EPOCHS, BATCH = 25, 64


def _prepare(images: Pixels) -> NDArray[np.float32]:
    """BGR of -1..1 with the channels first, as Paddle's pipelines decode images."""
    values = images[..., ::-1].astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def paddle_bgr() -> Exported:
    """Opset 14, BGR of -1..1, probabilities."""
    paddle.seed(0)
    data = coloured_digits()
    network = nn.Sequential(
        nn.Sequential(nn.Conv2D(3, 12, 3, padding=1), nn.BatchNorm2D(12), nn.ReLU()),
        nn.MaxPool2D(2),
        nn.Sequential(nn.Conv2D(12, 24, 3, padding=1), nn.BatchNorm2D(24), nn.Hardswish()),
        nn.AdaptiveAvgPool2D(1),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )
    optimiser = paddle.optimizer.Adam(5e-3, parameters=network.parameters())
    inputs, generator = _prepare(data.images), np.random.default_rng(0)
    for _ in range(EPOCHS):
        for rows in np.array_split(generator.permutation(len(inputs)), len(inputs) // BATCH):
            scores = network(paddle.to_tensor(inputs[rows]))
            nn.functional.cross_entropy(scores, paddle.to_tensor(data.labels[rows])).backward()
            optimiser.step()
            optimiser.clear_grad()
    network.eval()
    model: Any = nn.Sequential(network, nn.Softmax(1))
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        spec = paddle.static.InputSpec([None, 3, SIDE, SIDE], "float32", "image")
        paddle.jit.save(model, f"{folder}/net", input_spec=[spec])
        graph = next(p for p in Path(folder).iterdir() if p.suffix in (".json", ".pdmodel"))
        target = Path(folder) / "net.onnx"
        paddle2onnx.export(str(graph), f"{folder}/net.pdiparams", str(target), opset_version=14)
        file = target.read_bytes()
    return Exported(
        file=file,
        documented=convention("NCHW", "BGR", 1 / 127.5, (1.0,)),
        output="probabilities",
        batch=None,
        predict=lambda images: model(paddle.to_tensor(_prepare(images))).numpy(),
        taps=2,
    )
