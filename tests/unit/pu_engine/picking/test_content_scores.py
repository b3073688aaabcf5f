from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from pu_engine.picking.content_scores import (
    background_gaussian,
    class_gaussians,
    confidence,
    content_score,
    energy,
    margin,
    moments,
    rank_correlation,
    rank_sum,
    ranks,
    relative_mahalanobis,
    separation,
    squared_distance,
)


def test_energy_is_the_logsumexp_of_the_mean_over_image_and_mirror() -> None:
    logits = np.array([[[2.0, 0.0], [0.0, 0.0]]], dtype=np.float32)  # mean (1, 0)
    assert energy(logits) == pytest.approx(np.log(np.e + 1))


def test_energy_of_large_logits_does_not_overflow() -> None:
    assert energy(np.full((1, 2, 4), 5000.0)) == pytest.approx(5000 + np.log(4))


def test_confidence_is_the_largest_probability() -> None:
    logits = np.log(np.array([[[0.7, 0.2, 0.1], [0.7, 0.2, 0.1]]]))
    assert confidence(logits) == pytest.approx(0.7)


def test_margin_is_the_lead_of_the_largest_logit() -> None:
    assert margin(np.array([[[4.0, 1.0, 2.0], [2.0, 1.0, 0.0]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])).tolist() == [2, 0]


def test_streamed_moments_equal_those_of_the_whole() -> None:
    rows = np.random.default_rng(0).normal(1000.0, 0.1, (503, 5)).astype(np.float32)
    streamed = moments([rows[:7], rows[7:7], rows[7:300], rows[300:]])
    assert streamed.count == 503
    np.testing.assert_allclose(streamed.mean, rows.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance, np.cov(rows.astype(np.float64).T, bias=True), rtol=1e-9)


def test_moments_of_nothing_raise() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        moments([])


def test_squared_distance_matches_the_textbook_formula() -> None:
    generator = np.random.default_rng(1)
    rows, classes = generator.normal(size=(60, 3)), np.arange(60) % 2
    gaussians = class_gaussians(rows, classes)
    means = np.stack([rows[classes == k].mean(axis=0) for k in (0, 1)])
    centred = rows - means[classes]
    covariance = centred.T @ centred / 60
    shrunk = 0.9 * covariance + 0.1 * np.trace(covariance) / 3 * np.eye(3)
    x = generator.normal(size=3)
    expected = min((x - mean) @ np.linalg.inv(shrunk) @ (x - mean) for mean in means)
    assert squared_distance(x[None], gaussians)[0] == pytest.approx(expected, rel=1e-9)


def test_background_has_a_small_ridge() -> None:
    rows = np.random.default_rng(2).normal(size=(200, 2)) * [1.0, 0.0]
    background = background_gaussian(moments([rows]))
    variance = rows[:, 0].var()
    off = squared_distance(np.array([[rows[:, 0].mean(), 1.0]]), background)[0]
    assert off == pytest.approx(1.0 / (0.001 * variance / 2), rel=1e-6)


def test_relative_score_prefers_what_lies_near_a_class_and_off_the_pool() -> None:
    generator = np.random.default_rng(3)
    labelled = generator.normal([4.0, 4.0], 0.5, (50, 2))
    pool = generator.normal(0.0, 1.5, (2000, 2))
    classes = class_gaussians(labelled, np.zeros(50, dtype=int))
    background = background_gaussian(moments([pool]))
    near, middle = relative_mahalanobis(np.array([[4.0, 4.0], [0.0, 0.0]]), classes, background)
    assert near > 0 > middle


def test_a_common_direction_of_all_images_does_not_count() -> None:
    generator = np.random.default_rng(4)
    rows = generator.normal(size=(400, 3)) * [10.0, 1.0, 1.0]
    classes = class_gaussians(rows[:200] + np.array([0, 2, 0]), np.zeros(200, dtype=int))
    background = background_gaussian(moments([rows]))
    low, high = relative_mahalanobis(np.array([[-5.0, 2.0, 0.0], [5.0, 2.0, 0.0]]), classes, background)
    assert abs(low - high) < 1.0


def test_degenerate_features_give_finite_scores() -> None:
    constant = np.full((10, 4), 3.0, dtype=np.float16)
    classes = class_gaussians(constant, np.arange(10) % 2)
    background = background_gaussian(moments([constant]))
    assert np.isfinite(relative_mahalanobis(constant, classes, background)).all()


def test_fewer_images_than_features_give_finite_scores() -> None:
    generator = np.random.default_rng(5)
    labelled, pool = generator.normal(size=(4, 64)), generator.normal(size=(20, 64))
    classes = class_gaussians(labelled, np.array([0, 0, 7, 7]))
    assert np.isfinite(relative_mahalanobis(pool, classes, background_gaussian(moments([pool])))).all()


SCORES_OF_NOISE = """
import hashlib, numpy as np, torch
from pu_engine.picking.content_scores import background_gaussian, class_gaussians, moments, relative_mahalanobis
torch.set_num_threads(1)
rows = np.random.default_rng(0).normal(size=(3000, 300))
scores = relative_mahalanobis(
    rows, class_gaussians(rows[:500], np.arange(500) % 10), background_gaussian(moments([rows]))
)
print(hashlib.sha256(scores.tobytes()).hexdigest())
"""


def test_scores_do_not_depend_on_the_machines_threads() -> None:
    found = set()
    for threads in ("1", "2"):
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        command = [sys.executable, "-c", SCORES_OF_NOISE]
        found.add(subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60).stdout)
    assert len(found) == 1


def test_equal_scores_share_their_rank() -> None:
    assert ranks(np.array([5.0, 1.0, 5.0, 9.0])).tolist() == [2.5 / 4, 1 / 4, 2.5 / 4, 1.0]


def test_a_rank_sum_ignores_the_scale_of_each_score() -> None:
    first, second = np.array([1.0, 2.0, 3.0]), np.array([0.3, 0.1, 0.2])
    np.testing.assert_allclose(rank_sum(first, second), rank_sum(np.exp(first * 9), second - 100))


def test_a_constant_score_changes_no_order() -> None:
    score = np.array([0.4, 0.1, 0.9])
    assert np.argsort(rank_sum(score, np.zeros(3))).tolist() == np.argsort(score).tolist()


def test_orders_that_agree_correlate_whatever_their_scale() -> None:
    score = np.array([0.4, 0.1, 0.9, 0.2])
    assert rank_correlation(score, np.exp(5 * score)) == pytest.approx(1.0)
    assert rank_correlation(score, -score) == pytest.approx(-1.0)
    assert rank_correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, 3.0])) == pytest.approx(0.8)


def test_a_constant_score_agrees_with_nothing() -> None:
    assert rank_correlation(np.arange(5.0), np.ones(5)) == 0.0


def test_a_correlation_of_different_images_is_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        rank_correlation(np.arange(3.0), np.arange(2.0))


def test_last_tap_all_taps_and_an_energy_that_agrees_with_them_count_three_to_two_to_one() -> None:
    energies, last, everything = np.array([4.0, 3.0, 2.0, 1.0]), np.array([2.0, 4.0, 1.0, 3.0]), np.arange(4.0)[::-1]
    expected = 3 * ranks(last) + 2 * ranks(everything) + ranks(energies)
    np.testing.assert_allclose(content_score(energies, last, everything), expected)


def test_an_energy_that_contradicts_the_features_has_no_say() -> None:
    energies, last, everything = np.arange(4.0), np.array([2.0, 4.0, 1.0, 3.0]), np.arange(4.0)[::-1]
    expected = 3 * ranks(last) + 2 * ranks(everything)
    np.testing.assert_allclose(content_score(energies, last, everything), expected)


def test_an_energy_in_doubt_counts_by_how_far_it_agrees() -> None:
    generator = np.random.default_rng(0)
    everything = generator.normal(size=4000)
    energies = 0.16 * everything + generator.normal(size=4000)
    last = generator.normal(size=4000)
    trust = rank_correlation(energies, everything) / 0.3
    assert 0.3 < trust < 0.7
    expected = 3 * ranks(last) + 2 * ranks(everything) + trust * ranks(energies)
    np.testing.assert_allclose(content_score(energies, last, everything), expected)


def test_separation_counts_pairs_and_halves_ties() -> None:
    assert separation(np.array([3.0, 2.0]), np.array([1.0, 2.0])) == pytest.approx(3.5 / 4)
    assert separation(np.ones(3), np.ones(4)) == pytest.approx(0.5)


def test_separation_from_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="2 and 0"):
        separation(np.arange(2.0), np.zeros(0))
