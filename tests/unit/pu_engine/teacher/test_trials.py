"""How labelled images rank preprocessings, and when they can't."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.teacher import conventions, trials
from pu_engine.teacher.labels import ClassOrder, accuracy, assign
from pu_engine.types import Preprocessing, StatedPreprocessing

ORDER = ClassOrder(source="stated", index={"dark": 0, "light": 1})
NOTHING = StatedPreprocessing()
GRAY = (2, 2, 1)


def test_losses_do_not_depend_on_the_size_of_the_logits() -> None:
    scores = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 0.5]])
    index = np.array([0, 1, 1])
    small, large = trials.losses(scores, index), trials.losses(scores * 2**12, index)
    np.testing.assert_allclose(small, large)
    assert small.mean() < np.log(2)


def test_loss_of_scores_that_say_nothing_is_that_of_guessing() -> None:
    assert trials.losses(np.zeros((4, 5)), np.arange(4)).mean() == pytest.approx(np.log(5))


def images_of(pixels: list[int]) -> NDArray[np.uint8]:
    return np.repeat(np.array(pixels, np.uint8), 4).reshape(len(pixels), *GRAY)


def brightness(values: NDArray[Any]) -> NDArray[Any]:
    """A teacher that takes -1..1 and is surest of values near 0.5 being light."""
    mean = values.reshape(len(values), -1).mean(axis=1)
    return np.stack([-8 * np.abs(mean + 0.5), -8 * np.abs(mean - 0.5)], axis=1)


PIXELS = [60, 190] * 20
LABELS = ["dark", "light"] * 20


def candidates() -> list[Preprocessing]:
    return list(chain.from_iterable(conventions.hypotheses("NCHW", "float32", GRAY, NOTHING)))


def test_right_scaling_ranks_first() -> None:
    found = trials.try_all(brightness, images_of(PIXELS), LABELS, candidates(), [ORDER])
    best = found[0].preprocessing
    assert best.mean == (1.0,)
    assert best.scale == pytest.approx(1 / 127.5)
    rows = trials.table(found, LABELS)
    assert (rows[0].accuracy, rows[0].agreement) == (1.0, 1.0)
    assert [row.nll for row in rows] == sorted(row.nll for row in rows)


def test_scaling_that_makes_no_difference_is_a_tie() -> None:
    def scale_free(values: NDArray[Any]) -> NDArray[Any]:
        mean = values.reshape(len(values), -1).mean(axis=1)
        return np.stack([mean * 0 + np.median(mean), mean], axis=1) * 100

    pixels = [int(p) for p in np.random.default_rng(0).integers(0, 256, 40)]
    labels = ["light" if (p > np.median(pixels)) ^ (i % 7 == 0) else "dark" for i, p in enumerate(pixels)]
    found = trials.try_all(scale_free, images_of(pixels), labels, candidates()[:2], [ORDER])
    assert [t.preprocessing for t in trials.ties(found)] == [found[1].preprocessing]
    assert [row.tied for row in trials.table(found, labels)] == [False, True]


def test_overflowing_hypotheses_are_left_out_and_all_of_them_an_error() -> None:
    def overflows(values: NDArray[Any]) -> NDArray[Any]:
        scores = brightness(values)
        return scores if np.abs(values).max() <= 2 else scores * np.inf

    found = trials.try_all(overflows, images_of(PIXELS), LABELS, candidates(), [ORDER])
    assert 0 < len(found) < len(candidates())
    none = trials.try_all(lambda v: brightness(v) * np.nan, images_of(PIXELS), LABELS, candidates(), [ORDER])
    with pytest.raises(EngineError) as caught:
        trials.check_usable(none)
    assert caught.value.code == "MODEL_NONFINITE"


def test_scores_that_ignore_the_image_are_refused() -> None:
    found = trials.try_all(lambda v: np.ones((len(v), 2)), images_of(PIXELS), LABELS, candidates(), [ORDER])
    with pytest.raises(EngineError) as caught:
        trials.check_usable(found)
    assert caught.value.code == "TEACHER_IGNORES_IMAGE"


def test_guessing_is_no_convention() -> None:
    def noise(values: NDArray[Any]) -> NDArray[Any]:
        return np.random.default_rng(int(np.abs(values).sum())).normal(size=(len(values), 2))

    found = trials.try_all(noise, images_of(PIXELS), LABELS, candidates(), [ORDER])
    rows = trials.table(found, LABELS)
    with pytest.raises(EngineError) as caught:
        trials.check_above_chance(found[0].scores, ORDER, LABELS, rows)
    assert caught.value.code == "TEACHER_CONVENTION_UNKNOWN"
    assert len(caught.value.details) == len(candidates())


@pytest.mark.parametrize("seed", range(4))
def test_order_fitted_to_noise_is_no_convention(seed: int) -> None:
    labels = [f"label {i:02d}" for i in range(20)] * 10
    scores = np.random.default_rng(seed).normal(size=(200, 1000))
    order = assign(scores, labels)
    assert accuracy(scores, order, labels) > 0.05
    with pytest.raises(EngineError) as caught:
        trials.check_above_chance(scores, order, labels, [])
    assert caught.value.code == "TEACHER_CONVENTION_UNKNOWN"


def test_accuracy_of_a_fitted_order_is_that_on_other_images() -> None:
    labels = ["a", "b", "c"] * 10
    scores = np.random.default_rng(0).normal(size=(30, 40))
    trial = trials.Trial(
        preprocessing=candidates()[0], scores=scores, order=assign(scores, labels), losses=np.zeros(30)
    )
    assert trials.table([trial], labels)[0].accuracy < accuracy(scores, trial.order, labels)


def test_few_images_that_are_all_right_are_a_warning() -> None:
    labels = ["dark", "light"] * 3
    scores = np.array([[1.0, 0.0], [0.0, 1.0]] * 3)
    (warning,) = trials.check_above_chance(scores, ORDER, labels, [])
    assert "all of 6 labelled images" in warning
    assert trials.check_above_chance(np.tile(scores, (5, 1)), ORDER, labels * 5, []) == ()
    with pytest.raises(EngineError):
        trials.check_above_chance(np.roll(scores, 1, axis=0), ORDER, labels, [])


def test_constant_guess_is_chance_and_a_few_right_images_of_a_small_class_are_not() -> None:
    labels = ["dark"] * 18 + ["light"] * 3
    constant = np.tile([1.0, 0.0], (21, 1))
    trials.check_above_chance(np.array([[1.0, 0.0]] * 18 + [[0.0, 1.0]] * 3), ORDER, labels, [])
    with pytest.raises(EngineError):
        trials.check_above_chance(constant, ORDER, labels, [])


def trial(right: list[bool], losses: list[float], place: int = 0) -> trials.Trial:
    """A trial of images labelled "dark" in which some are right."""
    scores = np.array([[1.0, 0.0] if r else [0.0, 1.0] for r in right])
    return trials.Trial(
        preprocessing=candidates()[place], scores=scores, order=ORDER, losses=np.array(losses, np.float64)
    )


def test_tie_that_would_cost_accuracy_is_refused_and_names_both() -> None:
    labels = ["dark"] * 100
    first = trial([True] * 70 + [False] * 30, [0.5] * 100)
    second = trial([True] * 90 + [False] * 10, [0.5 + 0.1 * (-1) ** i for i in range(100)], place=1)
    with pytest.raises(EngineError) as caught:
        trials.check_costly_ties([first, second], labels)
    assert caught.value.code == "TEACHER_CONVENTION_UNKNOWN"
    assert caught.value.details["second"] == conventions.describe(second.preprocessing)


def test_tie_is_taken_where_the_other_is_no_better_or_the_difference_may_be_chance() -> None:
    labels = ["dark"] * 20
    losses = [0.5 + 0.1 * (-1) ** i for i in range(20)]
    first = trial([True] * 14 + [False] * 6, [0.5] * 20)
    one_more = trial([True] * 15 + [False] * 5, losses, place=1)
    fewer = trial([True] * 10 + [False] * 10, losses, place=1)
    for other in (one_more, fewer):
        trials.check_costly_ties([first, other], labels)
    clearly_worse = trial([True] * 20, [5.0] * 20, place=1)
    trials.check_costly_ties([first, clearly_worse], labels)


def test_rare_preprocessing_needs_a_factor_of_e_in_likelihood() -> None:
    common, rare = candidates()[0], candidates()[4]
    assert (conventions.rarity(common), conventions.rarity(rare)) == (0.0, 1.0)
    costs = []
    for preprocessing, losses in ((common, [0.11] * 10), (rare, [0.1] * 10), (rare, [0.0] * 10)):
        one = trials.Trial(
            preprocessing=preprocessing, scores=np.zeros((10, 2)), order=ORDER, losses=np.array(losses, np.float64)
        )
        costs.append(one.cost)
    assert costs == pytest.approx([1.1, 2.0, 1.0])


def test_fitted_order_is_one_of_all_that_there_are() -> None:
    index = {"a": 2, "b": 0, "c": 1}
    assert trials.order_rarity(ClassOrder(source="assigned", index=index), 3) == pytest.approx(np.log(6))
    assert trials.order_rarity(ClassOrder(source="assigned", index=index), 5) == pytest.approx(np.log(60))
    assert trials.order_rarity(ClassOrder(source="sorted", index=index), 3) == 0.0


def test_swapped_colours_are_not_explained_by_a_swapped_order() -> None:
    labels = ["blue", "red"] * 20
    images = np.array([[[[20, 60, 220]]], [[[220, 60, 20]]]] * 20, np.uint8)
    pair = list(chain.from_iterable(conventions.hypotheses("NHWC", "float32", (1, 1, 3), NOTHING)))

    def takes_bgr(values: NDArray[Any]) -> NDArray[Any]:
        return values[:, 0, 0, [0, 2]] * 4

    order = ClassOrder(source="sorted", index={"blue": 0, "red": 1})
    best = trials.try_all(takes_bgr, images, labels, pair, [order])[0]
    assert (best.preprocessing.channels, best.order.source) == ("BGR", "sorted")


def test_temperature_is_fine_enough_that_a_scaled_copy_of_the_logits_ties() -> None:
    generator = np.random.default_rng(0)
    index = generator.integers(0, 4, 200)
    scores = generator.normal(size=(200, 4)) + 2 * np.eye(4)[index]
    small, large = (trials.losses(scores * gain, index).mean() for gain in (1.0, 2**0.5))
    assert small == pytest.approx(large, rel=1e-3)
