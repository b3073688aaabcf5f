"""Hypotheses about a teacher's input, and how labelled images rank them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pu_engine import conventions
from pu_engine.errors import EngineError
from pu_engine.graph_surgery import ModelInput
from pu_engine.labels import ClassOrder, accuracy, assign
from pu_engine.types import Preprocessing, StatedPreprocessing

ORDER = ClassOrder(source="stated", index={"dark": 0, "light": 1})
NOTHING = StatedPreprocessing()
GRAY = (2, 2, 1)


def source(*dims: int | None, dtype: str = "float32") -> ModelInput:
    return ModelInput(name="x", dtype=dtype, dims=dims)


def first_node(operator: str, **attributes: Any) -> Any:
    nodes = [helper.make_node("Mul", ["x", "x"], ["m"]), helper.make_node(operator, ["m"], ["y"], **attributes)]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)], [])
    return helper.make_model(graph)


@pytest.mark.parametrize(
    ("model", "dims", "layout"),
    [
        (first_node("Conv"), (None, 3, 3, 3), "NCHW"),
        (first_node("Transpose", perm=[0, 3, 1, 2]), (None, 3, 3, 3), "NHWC"),
        (first_node("Transpose", perm=[0, 2, 3, 1]), (None, 8, 8, 3), "NCHW"),
        (first_node("Flatten"), (None, 8, 8, 3), "NHWC"),
        (first_node("Flatten"), (None, 1, 8, 8), "NCHW"),
        (first_node("Gemm"), (None, 64), "flat"),
    ],
)
def test_layout_is_what_the_first_operators_take_the_input_for(model: Any, dims: tuple[Any, ...], layout: str) -> None:
    assert conventions.layout(model, source(*dims), NOTHING) == layout


def test_stated_layout_is_believed_where_it_can_be() -> None:
    stated = StatedPreprocessing(layout="NHWC")
    assert conventions.layout(first_node("Conv"), source(1, 3, 3, 3), stated) == "NHWC"
    for dims in ((1, 64), (1, 3, 8, 8)):
        wrong = StatedPreprocessing(layout="NHWC" if len(dims) == 2 else "flat")
        with pytest.raises(EngineError) as caught:
            conventions.layout(first_node("Gemm"), source(*dims), wrong)
        assert caught.value.code == "REQUEST_INVALID"


def test_free_sizes_come_from_the_statement_then_from_the_images() -> None:
    free = source(None, 3, None, None)
    assert conventions.image_shape(free, "NCHW", NOTHING, (32, 40)) == (32, 40, 3)
    assert conventions.image_shape(free, "NCHW", NOTHING, (500, 375)) == (224, 224, 3)
    stated = StatedPreprocessing(height=48, width=192)
    assert conventions.image_shape(free, "NCHW", stated, (32, 32)) == (48, 192, 3)
    assert conventions.image_shape(source(None, 28, 28, 1), "NHWC", NOTHING, (9, 9)) == (28, 28, 1)


def test_flat_rows_are_square_images() -> None:
    assert conventions.image_shape(source(None, 64), "flat", NOTHING, (9, 9)) == (8, 8, 1)
    assert conventions.image_shape(source(None, 3072), "flat", NOTHING, (9, 9)) == (32, 32, 3)
    with pytest.raises(EngineError, match="no square image"):
        conventions.image_shape(source(None, 65), "flat", NOTHING, (9, 9))


@pytest.mark.parametrize(
    "stated", [StatedPreprocessing(height=9), StatedPreprocessing(width=9), StatedPreprocessing(channels="GRAY")]
)
def test_statement_against_the_model_is_refused(stated: StatedPreprocessing) -> None:
    with pytest.raises(EngineError) as caught:
        conventions.image_shape(source(None, 3, 8, 8), "NCHW", stated, (8, 8))
    assert caught.value.code == "REQUEST_INVALID"


def test_hypotheses_cover_orders_and_scalings_once() -> None:
    found = conventions.hypotheses("NCHW", "float32", (8, 8, 3), NOTHING)
    assert len(found) == len(set(found)) == 18
    caffe = [p for p in found if p.channels == "BGR" and p.mean[0] == 103.939]
    assert [p.mean for p in caffe] == [(103.939, 116.779, 123.68)]


@pytest.mark.parametrize(("dtype", "mean"), [("uint8", 0.0), ("int8", 128.0)])
def test_integer_inputs_take_pixels_only(dtype: str, mean: float) -> None:
    found = conventions.hypotheses("NHWC", dtype, (8, 8, 3), NOTHING)
    assert [(p.channels, p.scale, p.mean[0]) for p in found] == [("RGB", 1.0, mean), ("BGR", 1.0, mean)]


def test_stated_fields_hold_in_every_hypothesis() -> None:
    stated = StatedPreprocessing(channels="BGR", scale=0.5, mean=(1.0, 2.0, 3.0), std=(2.0,))
    (only,) = conventions.hypotheses("NCHW", "float32", (8, 8, 3), stated)
    assert (only.channels, only.scale, only.mean, only.std) == ("BGR", 0.5, (1.0, 2.0, 3.0), (2.0, 2.0, 2.0))
    for wrong in (StatedPreprocessing(mean=(1.0, 2.0)), StatedPreprocessing(std=(0.0,))):
        with pytest.raises(EngineError) as caught:
            conventions.hypotheses("NCHW", "float32", (8, 8, 3), wrong)
        assert caught.value.code == "REQUEST_INVALID"


def test_losses_do_not_depend_on_the_size_of_the_logits() -> None:
    scores = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.5]])
    index = np.array([0, 1, 1])
    small, large = conventions.losses(scores, index), conventions.losses(scores * 2**12, index)
    np.testing.assert_allclose(small, large)
    assert small.mean() < np.log(2)


def test_loss_of_scores_that_say_nothing_is_that_of_guessing() -> None:
    assert conventions.losses(np.zeros((4, 5)), np.arange(4)).mean() == pytest.approx(np.log(5))


def images_of(pixels: list[int]) -> NDArray[np.uint8]:
    return np.repeat(np.array(pixels, np.uint8), 4).reshape(len(pixels), *GRAY)


def brightness(values: NDArray[Any]) -> NDArray[Any]:
    """A teacher that takes -1..1 and is surest of values near 0.5 being light."""
    mean = values.reshape(len(values), -1).mean(axis=1)
    return np.stack([-8 * np.abs(mean + 0.5), -8 * np.abs(mean - 0.5)], axis=1)


PIXELS = [60, 190] * 20
LABELS = ["dark", "light"] * 20


def candidates() -> list[Preprocessing]:
    return conventions.hypotheses("NCHW", "float32", GRAY, NOTHING)


def test_right_scaling_ranks_first() -> None:
    trials = conventions.try_all(brightness, images_of(PIXELS), LABELS, candidates(), [ORDER])
    best = trials[0].preprocessing
    assert best.mean == (1.0,)
    assert best.scale == pytest.approx(1 / 127.5)
    rows = conventions.table(trials, LABELS)
    assert (rows[0].accuracy, rows[0].agreement) == (1.0, 1.0)
    assert [row.nll for row in rows] == sorted(row.nll for row in rows)


def test_scaling_that_makes_no_difference_is_a_tie() -> None:
    def scale_free(values: NDArray[Any]) -> NDArray[Any]:
        mean = values.reshape(len(values), -1).mean(axis=1)
        return np.stack([mean * 0 + np.median(mean), mean], axis=1) * 100

    pixels = [int(p) for p in np.random.default_rng(0).integers(0, 256, 40)]
    labels = ["light" if (p > np.median(pixels)) ^ (i % 7 == 0) else "dark" for i, p in enumerate(pixels)]
    trials = conventions.try_all(scale_free, images_of(pixels), labels, candidates()[:2], [ORDER])
    assert [t.preprocessing for t in conventions.ties(trials)] == [trials[1].preprocessing]


def test_overflowing_hypotheses_are_left_out_and_all_of_them_an_error() -> None:
    def overflows(values: NDArray[Any]) -> NDArray[Any]:
        scores = brightness(values)
        return scores if np.abs(values).max() <= 2 else scores * np.inf

    trials = conventions.try_all(overflows, images_of(PIXELS), LABELS, candidates(), [ORDER])
    assert 0 < len(trials) < len(candidates())
    with pytest.raises(EngineError) as caught:
        conventions.try_all(lambda v: brightness(v) * np.nan, images_of(PIXELS), LABELS, candidates(), [ORDER])
    assert caught.value.code == "MODEL_NONFINITE"


def test_scores_that_ignore_the_image_are_refused() -> None:
    with pytest.raises(EngineError) as caught:
        conventions.try_all(lambda v: np.ones((len(v), 2)), images_of(PIXELS), LABELS, candidates(), [ORDER])
    assert caught.value.code == "TEACHER_IGNORES_IMAGE"


def test_guessing_is_no_convention() -> None:
    def noise(values: NDArray[Any]) -> NDArray[Any]:
        return np.random.default_rng(int(np.abs(values).sum())).normal(size=(len(values), 2))

    trials = conventions.try_all(noise, images_of(PIXELS), LABELS, candidates(), [ORDER])
    rows = conventions.table(trials, LABELS)
    with pytest.raises(EngineError) as caught:
        conventions.check_above_chance(trials[0].scores, ORDER, LABELS, rows)
    assert caught.value.code == "TEACHER_CONVENTION_UNKNOWN"
    assert len(caught.value.details) == len(candidates())


@pytest.mark.parametrize("seed", range(4))
def test_order_fitted_to_noise_is_no_convention(seed: int) -> None:
    labels = [f"label {i:02d}" for i in range(20)] * 10
    scores = np.random.default_rng(seed).normal(size=(200, 1000))
    order = assign(scores, labels)
    assert accuracy(scores, order, labels) > 0.05
    with pytest.raises(EngineError) as caught:
        conventions.check_above_chance(scores, order, labels, [])
    assert caught.value.code == "TEACHER_CONVENTION_UNKNOWN"


def test_accuracy_of_a_fitted_order_is_that_on_other_images() -> None:
    labels = ["a", "b", "c"] * 10
    scores = np.random.default_rng(0).normal(size=(30, 40))
    trial = conventions.Trial(
        preprocessing=candidates()[0], scores=scores, order=assign(scores, labels), losses=np.zeros(30)
    )
    assert conventions.table([trial], labels)[0].accuracy < accuracy(scores, trial.order, labels)


def test_few_images_that_are_all_right_are_a_warning() -> None:
    labels = ["dark", "light"] * 3
    scores = np.array([[1.0, 0.0], [0.0, 1.0]] * 3)
    (warning,) = conventions.check_above_chance(scores, ORDER, labels, [])
    assert "all of 6 labelled images" in warning
    assert conventions.check_above_chance(np.tile(scores, (5, 1)), ORDER, labels * 5, []) == ()
    with pytest.raises(EngineError):
        conventions.check_above_chance(np.roll(scores, 1, axis=0), ORDER, labels, [])


def test_constant_guess_is_chance_and_a_few_right_images_of_a_small_class_are_not() -> None:
    labels = ["dark"] * 18 + ["light"] * 3
    constant = np.tile([1.0, 0.0], (21, 1))
    conventions.check_above_chance(np.array([[1.0, 0.0]] * 18 + [[0.0, 1.0]] * 3), ORDER, labels, [])
    with pytest.raises(EngineError):
        conventions.check_above_chance(constant, ORDER, labels, [])
