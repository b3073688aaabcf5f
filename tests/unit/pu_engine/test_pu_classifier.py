"""Synthetic pools with a known share of images from the labelled images' own source."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pu_engine.prior import best_bin_estimate
from pu_engine.progress import SilentProgress
from pu_engine.pu_classifier import Halves, linear_scores, make_halves, out_of_fold_scores, pu_scores

WIDTH = 16
Rows = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # as the stage does: two threads on layers this small wait for each other


def source(generator: np.random.Generator, count: int) -> Rows:
    """Images of the labelled images' source: a shifted, narrower cloud."""
    return (generator.normal(size=(count, WIDTH)) * 0.7 + np.linspace(0.0, 2.4, WIDTH)).astype(np.float32)


def others(generator: np.random.Generator, count: int) -> Rows:
    return generator.normal(size=(count, WIDTH)).astype(np.float32)


def halves_of(positive: Rows, pool: Rows, *, seed: int = 0, chunk: int = 1000) -> Halves:
    return make_halves(
        positive,
        np.arange(len(positive)) % 2,
        lambda: (pool[i : i + chunk] for i in range(0, len(pool), chunk)),
        np.random.default_rng(seed),
    )


def mixture(share: float, positives: int = 400, images: int = 6000) -> tuple[Halves, NDArray[np.bool_]]:
    generator = np.random.default_rng(7)
    truth = np.arange(images) < share * images
    pool = np.concatenate([source(generator, int(truth.sum())), others(generator, int((~truth).sum()))])
    return halves_of(source(generator, positives), pool), truth


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_prior_of_a_mixture_is_estimated(share: float) -> None:
    halves, _ = mixture(share)
    assert best_bin_estimate(*linear_scores(halves, 0, SilentProgress())).alpha == pytest.approx(share, abs=0.03)


def test_the_prior_of_a_disjoint_source_is_near_zero() -> None:
    halves, _ = mixture(0.0)
    assert best_bin_estimate(*linear_scores(halves, 0, SilentProgress())).alpha < 0.02


def test_images_of_the_source_come_first() -> None:
    halves, truth = mixture(0.2)
    score = pu_scores(halves, 0.2, 0, SilentProgress(), steps=200)
    best = np.argsort(-score)[: truth.sum()]
    assert truth[best].mean() > 0.9


def test_every_image_is_scored_by_the_half_that_did_not_train_on_it() -> None:
    generator = np.random.default_rng(0)
    halves = halves_of(source(generator, 10), others(generator, 50))
    trained: list[set[bytes]] = []

    def fit(positive, unlabelled, _generator):  # type: ignore[no-untyped-def]
        trained.append({row.numpy().tobytes() for row in (*positive, *unlabelled)})
        return lambda rows: rows[:, 0] * 0 + len(trained) - 1  # which classifier scored

    seen: list[NDArray[np.float64]] = list(out_of_fold_scores(halves, fit, 0))
    pool = [row.numpy().tobytes() for chunk in halves.pool() for row in chunk]
    labelled = [row.numpy().tobytes() for row in halves.positive]
    for half in (0, 1):
        assert not trained[half] & {row for row, h in zip(pool, halves.pool_half, strict=True) if h == half}
        assert not trained[half] & {row for row, h in zip(labelled, halves.positive_half, strict=True) if h == half}
    assert trained[0] | trained[1] == set(pool) | set(labelled)
    assert len(seen[0]) == 10
    assert len(seen[1]) == 50


def test_each_half_sees_every_class() -> None:
    generator = np.random.default_rng(0)
    halves = halves_of(source(generator, 8), others(generator, 50))
    classes = np.arange(8) % 2
    for half in (0, 1):
        assert np.bincount(classes[halves.positive_half == half]).tolist() == [2, 2]


def test_features_are_standardised_by_the_pool() -> None:
    generator = np.random.default_rng(0)
    halves = halves_of(source(generator, 8), others(generator, 900) * 50 + 300)
    pool = np.concatenate([chunk.numpy() for chunk in halves.pool()])
    np.testing.assert_allclose(pool.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(pool.std(axis=0), 1, atol=1e-4)


def test_chunks_do_not_change_the_scores() -> None:
    generator = np.random.default_rng(1)
    positive, pool = source(generator, 40), others(generator, 600)
    small = pu_scores(halves_of(positive, pool, chunk=77), 0.1, 3, SilentProgress(), steps=5)
    whole = pu_scores(halves_of(positive, pool, chunk=600), 0.1, 3, SilentProgress(), steps=5)
    np.testing.assert_allclose(small, whole, rtol=1e-4, atol=1e-5)


def test_a_repeated_run_gives_equal_scores_and_another_seed_others() -> None:
    generator = np.random.default_rng(1)
    positive, pool = source(generator, 40), others(generator, 600)
    scores = [
        pu_scores(halves_of(positive, pool, seed=s), 0.1, s, SilentProgress(), steps=5).tolist() for s in (3, 3, 4)
    ]
    assert scores[0] == scores[1] != scores[2]


def test_degenerate_features_and_two_labelled_images_stay_finite() -> None:
    constant = np.full((30, 4), 2.0, dtype=np.float32)
    halves = halves_of(constant[:2], constant)
    assert np.isfinite(best_bin_estimate(*linear_scores(halves, 0, SilentProgress())).alpha)
    assert np.isfinite(pu_scores(halves, 0.0, 0, SilentProgress(), steps=5)).all()


def test_a_channel_that_is_dead_on_the_pool_cannot_drown_the_others() -> None:
    generator = np.random.default_rng(2)
    positive, pool = source(generator, 20), others(generator, 200)
    pool[:, 0] = 0.0
    pool[0, 0] = 1e-4
    positive[:, 0] = 1e4
    assert float(halves_of(positive, pool).positive.abs().max()) <= 10.0


def test_training_keeps_a_bounded_part_of_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pu_engine.pu_classifier.TRAINING_BYTES", 4 * WIDTH * 25)
    generator = np.random.default_rng(2)
    halves = halves_of(source(generator, 20), others(generator, 200))
    assert [len(part) for part in halves.training] == [25, 25]


def test_too_few_images_to_cut_raise() -> None:
    with pytest.raises(ValueError, match="P=1"):
        halves_of(np.ones((1, 3), np.float32), np.ones((9, 3), np.float32))
