"""Synthetic pools with a known share of images from the labelled images' own source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pu_engine.picking.content_scores import separation
from pu_engine.picking.prior import best_bin_estimate
from pu_engine.picking.pu_classifier import beliefs, fit_logistic, source_inputs, source_scores
from pu_engine.picking.pu_folds import Folds, make_folds
from pu_engine.progress import SilentProgress

WIDTH = 16
Rows = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as the stage does


def source(generator: np.random.Generator, count: int) -> Rows:
    """Images of the labelled images' source: a shifted, narrower cloud."""
    return (generator.normal(size=(count, WIDTH)) * 0.7 + np.linspace(0.0, 2.4, WIDTH)).astype(np.float32)


def others(generator: np.random.Generator, count: int) -> Rows:
    return generator.normal(size=(count, WIDTH)).astype(np.float32)


def folds_of(positive: Rows, pool: Rows, *, seed: int = 0, chunk: int = 1000) -> Folds:
    return make_folds(
        positive,
        np.arange(len(positive)) % 2,
        lambda: (pool[i : i + chunk] for i in range(0, len(pool), chunk)),
        np.random.default_rng(seed),
    )


def mixture(share: float, positives: int = 300, images: int = 2500) -> tuple[Folds, NDArray[np.bool_]]:
    generator = np.random.default_rng(7)
    truth = np.arange(images) < share * images
    pool = np.concatenate([source(generator, int(truth.sum())), others(generator, int((~truth).sum()))])
    return folds_of(source(generator, positives), pool), truth


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_prior_of_a_mixture_is_estimated_and_its_images_come_first(share: float) -> None:
    folds, truth = mixture(share)
    labelled, pool = source_scores(folds, 0, SilentProgress())
    assert best_bin_estimate(labelled, pool).alpha == pytest.approx(share, abs=0.04)
    assert truth[np.argsort(-pool)[: truth.sum()]].mean() > 0.9


def test_the_prior_of_a_disjoint_source_is_near_zero() -> None:
    folds, _ = mixture(0.0)
    assert best_bin_estimate(*source_scores(folds, 0, SilentProgress())).alpha < 0.02


def test_smooth_functions_find_a_source_that_surrounds_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    inner, outer = torch.randn(2000, 4, generator=generator), torch.randn(2000, 4, generator=generator)
    outer = 3.0 * outer / outer.norm(dim=1, keepdim=True)
    found = []
    for functions in (0, 200):
        scorer = fit_logistic(outer[:1000], inner[:1000], torch.zeros(1000), generator, functions=functions)
        found.append(separation(scorer(outer[1000:]).double().numpy(), scorer(inner[1000:]).double().numpy()))
    assert found[0] < 0.6
    assert found[1] > 0.9


def test_inputs_are_features_largest_logits_in_order_and_energy() -> None:
    logits = np.array([[[1.0, 5.0, 2.0], [1.0, 3.0, 2.0]]])
    row = source_inputs(np.array([[7.0, 8.0]], np.float32), logits)[0]
    assert row[:5].tolist() == [7.0, 8.0, 4.0, 2.0, 1.0]
    assert row[5] == pytest.approx(np.log(np.exp([4.0, 2.0, 1.0]).sum()))
    assert source_inputs(np.zeros((3, 2), np.float32), np.zeros((3, 2, 1000))).shape == (3, 2 + 10 + 1)


def test_the_penalty_bounds_a_separable_problem() -> None:
    positive, pool = torch.ones(10, 3), -torch.ones(10, 3)
    scorer = fit_logistic(positive, pool, torch.zeros(10), torch.Generator().manual_seed(0), functions=0)
    assert 1.0 < float(scorer(positive)[0]) < 20.0


def test_training_takes_a_drawn_part_of_a_pool_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pu_engine.picking.pu_classifier.EXPANDED_BYTES", 4 * 1 * 100)
    pool = torch.linspace(-3, 3, 4001)[:, None]
    scorer = fit_logistic(
        torch.full((50, 1), 3.0), pool, torch.zeros(4001), torch.Generator().manual_seed(0), functions=0
    )
    middle = float(scorer(torch.zeros(1, 1))[0])
    assert middle < 0  # the first 100 images alone, all about -3, would leave it near 0


def test_a_second_round_finds_more_where_few_images_are_labelled() -> None:
    found = []
    for seed in range(2):
        generator = np.random.default_rng(seed)
        truth = np.arange(1500) < 300
        pool = np.concatenate([source(generator, 300), others(generator, 1200)])
        folds = folds_of(source(generator, 30), pool, seed=seed)
        first = source_scores(folds, seed, SilentProgress())[1]
        second = source_scores(folds, seed, SilentProgress(), belief=beliefs(first, 0.2))[1]
        found.append([separation(score[truth], score[~truth]) for score in (first, second)])
    first_mean, second_mean = np.mean(found, axis=0)
    assert second_mean > first_mean


@pytest.mark.parametrize("prior", [0.02, 0.3, 0.9])
def test_beliefs_have_the_prior_as_mean_and_keep_the_order(prior: float) -> None:
    score = np.random.default_rng(0).normal(size=500) * 8
    found = beliefs(score, prior)
    assert found.mean() == pytest.approx(prior, abs=1e-6)
    assert (np.diff(found[np.argsort(score)]) >= 0).all()
    assert np.isfinite(beliefs(np.zeros(4), prior)).all()


def test_chunks_do_not_change_the_scores() -> None:
    generator = np.random.default_rng(1)
    positive, pool = source(generator, 40), others(generator, 600)
    small = source_scores(folds_of(positive, pool, chunk=77), 3, SilentProgress())[1]
    whole = source_scores(folds_of(positive, pool, chunk=600), 3, SilentProgress())[1]
    np.testing.assert_allclose(small, whole, rtol=1e-3, atol=1e-3)


def test_a_repeated_run_gives_equal_scores_and_another_seed_others() -> None:
    generator = np.random.default_rng(1)
    positive, pool = source(generator, 40), others(generator, 600)
    scores = [source_scores(folds_of(positive, pool, seed=s), s, SilentProgress())[1].tolist() for s in (3, 3, 4)]
    assert scores[0] == scores[1] != scores[2]


def test_degenerate_features_and_two_labelled_images_stay_finite() -> None:
    constant = np.full((30, 4), 2.0, dtype=np.float32)
    labelled, pool = source_scores(folds_of(constant[:2], constant), 0, SilentProgress())
    assert np.isfinite(pool).all()
    assert np.isfinite(best_bin_estimate(labelled, pool).alpha)
