"""Folds of labelled and pool images."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pu_engine.picking.pu_folds import FOLDS, Folds, make_folds, out_of_fold_scores

WIDTH = 6
Rows = NDArray[np.float32]


def rows(seed: int, count: int) -> Rows:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def folds_of(positive: Rows, pool: Rows, *, seed: int = 0, chunk: int = 40) -> Folds:
    return make_folds(
        positive,
        np.arange(len(positive)) % 2,
        lambda: (pool[i : i + chunk] for i in range(0, len(pool), chunk)),
        np.random.default_rng(seed),
    )


def test_every_image_is_scored_by_the_classifier_that_did_not_see_it() -> None:
    folds = folds_of(rows(1, 20), rows(2, 100))
    trained: list[set[bytes]] = []

    def fit(fold, _generator):  # type: ignore[no-untyped-def]
        positive, unlabelled, _ = folds.split(fold)
        trained.append({row.numpy().tobytes() for row in (*positive, *unlabelled)})
        number = len(trained) - 1
        return lambda given: given[:, 0] * 0 + number

    labelled_score, pool_score = out_of_fold_scores(folds, fit, 0)
    pool = [row.numpy().tobytes() for part in folds.pool() for row in part]
    labelled = [row.numpy().tobytes() for row in folds.positive]
    assert len(trained) == FOLDS
    for images, score in ((labelled, labelled_score), (pool, pool_score)):
        for image, number in zip(images, score, strict=True):
            assert [i for i in range(FOLDS) if image not in trained[i]] == [int(number)]


def test_each_fold_sees_every_class() -> None:
    folds = folds_of(rows(1, 20), rows(2, 50))
    for fold in range(FOLDS):
        assert np.bincount(np.arange(20)[folds.positive_fold == fold] % 2).tolist() == [2, 2]


def test_each_training_image_knows_its_row() -> None:
    folds = folds_of(rows(1, 20), rows(2, 100))
    pool = np.concatenate([chunk.numpy() for chunk in folds.pool()])
    _, training, places = folds.split(3)
    np.testing.assert_array_equal(pool[places.numpy()], training.numpy())


def test_few_images_make_fewer_folds() -> None:
    assert folds_of(rows(1, 3), rows(2, 50)).count == 3
    assert folds_of(rows(1, 30), rows(2, 2)).count == 2


def test_features_are_standardised_by_the_pool() -> None:
    folds = folds_of(rows(1, 8), rows(2, 900) * 50 + 300)
    pool = np.concatenate([chunk.numpy() for chunk in folds.pool()])
    np.testing.assert_allclose(pool.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(pool.std(axis=0), 1, atol=1e-4)


def test_a_channel_that_is_dead_on_the_pool_cannot_drown_the_others() -> None:
    positive, pool = rows(1, 20), rows(2, 200)
    pool[:, 0] = 0.0
    pool[0, 0] = 1e-4
    positive[:, 0] = 1e4
    assert float(folds_of(positive, pool).positive.abs().max()) <= 10.0


def test_training_keeps_a_bounded_part_of_the_pool_drawn_from_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pu_engine.picking.pu_folds.TRAINING_BYTES", 4 * WIDTH * 50)
    pool = rows(2, 200)
    folds = folds_of(rows(1, 20), pool)
    assert len(folds.training) == 50
    assert np.bincount(folds.training_fold.numpy()).tolist() == [10] * FOLDS
    all_rows = np.concatenate([chunk.numpy() for chunk in folds.pool()])
    kept = {row.numpy().tobytes() for row in folds.training}
    places = [i for i, row in enumerate(all_rows) if row.tobytes() in kept]
    assert len(places) == 50
    assert min(places) < 30
    assert max(places) > 170


def test_too_few_images_to_cut_raise() -> None:
    with pytest.raises(ValueError, match="P=1"):
        folds_of(np.ones((1, WIDTH), np.float32), rows(2, 9))
