"""Digit classifiers trained in Keras 3 on TensorFlow, written by Keras itself and by tf2onnx."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf2onnx
from keras import layers
from numpy.typing import NDArray

from tests.frameworks.digits import CLASSES, GRAY_SIDE, SIDE, Digits, Exported, Pixels, coloured_digits, convention
from tests.frameworks.digits import gray_digits as gray

EPOCHS, BATCH = 15, 64
COLOUR = (SIDE, SIDE, 3)

Prepare = Callable[[Pixels], NDArray[Any]]


def _residual(shape: tuple[int, int, int], *, softmax: bool, first: list[Any] | None = None) -> Any:
    image = maps = keras.Input(shape)
    for layer in first or []:
        maps = layer(maps)
    maps = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(12, 3, padding="same", use_bias=False)(maps)))
    inner = layers.Conv2D(12, 3, padding="same", activation="relu")(maps)
    maps = layers.Add()([maps, layers.Conv2D(12, 3, padding="same")(inner)])
    maps = layers.MaxPooling2D(2)(layers.ReLU()(maps))
    maps = layers.Conv2D(24, 3, padding="same", strides=2, activation="relu")(maps)
    scores = layers.Dense(CLASSES, activation="softmax" if softmax else None)(layers.GlobalAveragePooling2D()(maps))
    return keras.Model(image, scores)


def _separable(shape: tuple[int, int, int]) -> Any:
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(12, 3, padding="same", activation="relu"),
            layers.SeparableConv2D(24, 3, padding="same", activation="relu6"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(32, activation="relu"),
            layers.Dense(CLASSES),
        ]
    )


def _trained(make: Callable[[], Any], prepare: Prepare, data: Digits, *, softmax: bool) -> Any:
    keras.utils.set_random_seed(0)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    model.compile(keras.optimizers.Adam(4e-3), loss)
    model.fit(prepare(data.images), data.labels, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return model


def _by_keras(model: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        model.export(path, format="onnx", verbose=False)
        return path.read_bytes()


def _by_tf2onnx(model: Any, spec: Any, opset: int, *, channels_first: bool = False) -> bytes:
    function = tf.function(lambda image: model(image, training=False), input_signature=[spec])
    proto, _ = tf2onnx.convert.from_function(
        function, [spec], opset=opset, inputs_as_nchw=[spec.name] if channels_first else None
    )
    data: bytes = proto.SerializeToString()
    return data


def _unit(images: Pixels) -> NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(255)


def _symmetric(images: Pixels) -> NDArray[np.float32]:
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)


def _pixels(images: Pixels) -> NDArray[np.float32]:
    return images.astype(np.float32)


def keras_softmax() -> Exported:
    """Keras's own export, 0..1, probabilities."""
    model = _trained(lambda: _residual(COLOUR, softmax=True), _unit, coloured_digits(), softmax=True)
    return Exported(
        file=_by_keras(model),
        documented=convention("NHWC", "RGB", 1 / 255),
        output="probabilities",
        batch=None,
        predict=lambda images: np.asarray(model(_unit(images), training=False)),
        taps=2,
    )


def keras_rescaling() -> Exported:
    """Keras's own export, 0..255: a Rescaling layer is part of the model."""
    inside = [layers.Rescaling(1 / 127.5, offset=-1)]
    model = _trained(lambda: _residual(COLOUR, softmax=False, first=inside), _pixels, coloured_digits(), softmax=False)
    return Exported(
        file=_by_keras(model),
        documented=convention("NHWC", "RGB", 1.0),
        output="logits",
        batch=None,
        predict=lambda images: np.asarray(model(_pixels(images), training=False)),
        taps=2,
    )


def tf2onnx_symmetric() -> Exported:
    """Opset 15, -1..1, NHWC."""
    model = _trained(lambda: _separable(COLOUR), _symmetric, coloured_digits(), softmax=False)
    return Exported(
        file=_by_tf2onnx(model, tf.TensorSpec((None, *COLOUR), tf.float32, "image"), 15),
        documented=convention("NHWC", "RGB", 1 / 127.5, (1.0,)),
        output="logits",
        batch=None,
        predict=lambda images: np.asarray(model(_symmetric(images), training=False)),
        taps=2,
    )


def tf2onnx_channels_first() -> Exported:
    """Opset 13, 0..1, the converter moved the channels to the front; batch fixed to 1."""
    model = _trained(lambda: _residual(COLOUR, softmax=False), _unit, coloured_digits(), softmax=False)
    return Exported(
        file=_by_tf2onnx(model, tf.TensorSpec((1, *COLOUR), tf.float32, "image"), 13, channels_first=True),
        documented=convention("NCHW", "RGB", 1 / 255),
        output="logits",
        batch=None,
        predict=lambda images: np.asarray(model(_unit(images), training=False)),
        taps=2,
    )


def tf2onnx_gray() -> Exported:
    """Opset 17, gray 0..1, probabilities."""
    shape = (GRAY_SIDE, GRAY_SIDE, 1)
    model = _trained(lambda: _residual(shape, softmax=True), _unit, gray(), softmax=True)
    return Exported(
        file=_by_tf2onnx(model, tf.TensorSpec((None, *shape), tf.float32, "image"), 17),
        documented=convention("NHWC", "GRAY", 1 / 255),
        output="probabilities",
        batch=None,
        predict=lambda images: np.asarray(model(_unit(images), training=False)),
        taps=2,
    )


def tf2onnx_uint8() -> Exported:
    """Opset 15, pixels cast and scaled inside the graph."""
    model = _trained(lambda: _separable(COLOUR), _symmetric, coloured_digits(), softmax=False)

    def from_pixels(image: Any, training: bool) -> Any:
        return model(tf.cast(image, tf.float32) / 127.5 - 1.0, training=training)

    return Exported(
        file=_by_tf2onnx(from_pixels, tf.TensorSpec((None, *COLOUR), tf.uint8, "image"), 15),
        documented=convention("NHWC", "RGB", 1.0, dtype="uint8"),
        output="logits",
        batch=None,
        predict=lambda images: np.asarray(model(_symmetric(images), training=False)),
        taps=2,
    )
