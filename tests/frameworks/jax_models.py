"""Digit classifiers trained in JAX with Flax, written by jax2onnx."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax2onnx import to_onnx
from numpy.typing import NDArray

from tests.frameworks.digits import CLASSES, SIDE, Exported, Pixels, coloured_digits, convention

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
EPOCHS, BATCH = 30, 64

Prepare = Callable[[Pixels], NDArray[np.float32]]


class Network(nnx.Module):  # type: ignore[misc]  # flax is not there in the environment that mypy sees
    """Convolutions with a residual, NHWC as Flax has it."""

    def __init__(self, keys: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, 12, (3, 3), rngs=keys)
        self.second = nnx.Conv(12, 12, (3, 3), rngs=keys)
        self.third = nnx.Conv(12, 24, (3, 3), strides=2, rngs=keys)
        self.head = nnx.Linear(24, CLASSES, rngs=keys)

    def __call__(self, images: Any) -> Any:
        maps = nnx.relu(self.first(images))
        maps = nnx.max_pool(maps + nnx.relu(self.second(maps)), window_shape=(2, 2), strides=(2, 2))
        return self.head(nnx.relu(self.third(maps)).mean((1, 2)))


def _trained(prepare: Prepare) -> Network:
    data = coloured_digits()
    network = Network(nnx.Rngs(0))
    optimiser = nnx.Optimizer(network, optax.adam(5e-3), wrt=nnx.Param)

    def step(network: Network, optimiser: Any, images: Any, labels: Any) -> None:
        def loss(network: Network) -> Any:
            return optax.softmax_cross_entropy_with_integer_labels(network(images), labels).mean()

        optimiser.update(network, nnx.grad(loss)(network))

    compiled: Any = nnx.jit(step)
    generator = np.random.default_rng(0)
    inputs, steps = prepare(data.images), len(data.labels) // BATCH
    for _ in range(EPOCHS):
        for rows in np.split(generator.permutation(len(inputs))[: steps * BATCH], steps):
            compiled(network, optimiser, jnp.asarray(inputs[rows]), jnp.asarray(data.labels[rows]))
    return network


def _unit(images: Pixels) -> NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(255)


def _standardised(images: Pixels) -> NDArray[np.float32]:
    mean, std = (np.array(values, np.float32) for values in (CIFAR_MEAN, CIFAR_STD))
    centred: NDArray[np.float32] = np.subtract(_unit(images), mean)
    return np.divide(centred, std)


def flax_nhwc() -> Exported:
    """jax2onnx's own opset, 0..1, logits."""
    network = _trained(_unit)
    return Exported(
        file=to_onnx(network, [("B", SIDE, SIDE, 3)]).SerializeToString(),
        documented=convention("NHWC", "RGB", 1 / 255),
        output="logits",
        batch=None,
        predict=lambda images: np.asarray(network(jnp.asarray(_unit(images)))),
        taps=2,
    )


def flax_nchw_softmax() -> Exported:
    """Input moved to NCHW by jax2onnx, CIFAR's mean and std, probabilities, batch fixed to 2."""
    network = _trained(_standardised)

    def probabilities(images: Any) -> Any:
        return jax.nn.softmax(network(images))

    return Exported(
        file=to_onnx(probabilities, [(2, SIDE, SIDE, 3)], opset=21, inputs_as_nchw=[0]).SerializeToString(),
        documented=convention("NCHW", "RGB", 1 / 255, CIFAR_MEAN, CIFAR_STD),
        output="probabilities",
        batch=None,
        predict=lambda images: np.asarray(probabilities(jnp.asarray(_standardised(images)))),
        taps=2,
    )
