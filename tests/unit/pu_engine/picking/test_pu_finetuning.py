"""The classifier trained end to end finds the labelled images' like in a pool, and never scores what it was shown."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pu_engine.picking import pu_finetuning
from pu_engine.picking.content_scores import separation
from pu_engine.picking.pu_finetuning import FineTuning, finetuned_scores
from pu_engine.progress import SilentProgress
from pu_engine.training.loop import repeatable
from pu_engine.twin.torch_twin import Twin, build
from pu_engine.types import Preprocessing
from tests.unit.pu_engine.twin.test_torch_twin import SIDE, small_network

HOW = Preprocessing(
    layout="NHWC", channels="RGB", scale=1 / 255, mean=(0.0,) * 3, std=(1.0,) * 3, dtype="float32", height=SIDE,
    width=SIDE, fit="stretch",
)  # fmt: skip
NETWORK = small_network()  # each call has other weights
QUICK = FineTuning(steps=60, positive_batch=16, pool_batch=32, backbone_rate=1e-3, head_rate=1e-2)


def coloured(count: int, colour: tuple[int, int, int], seed: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).normal(0, 25, (count, SIDE, SIDE, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def scores(seed: int = 0, **changes: Any) -> NDArray[np.float64]:
    labelled = coloured(24, (150, 110, 110), 1)
    pool = np.concatenate([coloured(30, (150, 110, 110), 2), coloured(90, (110, 110, 150), 3)])
    given: dict[str, Any] = {"prior": 0.25, "seed": seed, "device": torch.device("cpu"), "options": QUICK} | changes
    with repeatable(threads=1):
        return finetuned_scores(partial(build, NETWORK), labelled, pool, HOW, SilentProgress(), **given)


def test_images_like_the_labelled_ones_score_higher() -> None:
    found = scores()
    assert found.shape == (120,)
    assert separation(found[:30], found[30:]) > 0.95


def test_the_same_seed_gives_the_same_scores() -> None:
    short = FineTuning(steps=3, positive_batch=8, pool_batch=8)
    first, again, other = (scores(seed, options=short) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_no_image_is_scored_by_a_network_that_was_trained_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[set[bytes]] = []
    seen: list[tuple[set[bytes], set[bytes]]] = []
    fit, scored = pu_finetuning.fit, pu_finetuning.scored

    def watched_fit(found: Any, labelled: Any, pool: Any, *rest: Any, **more: Any) -> None:
        trained.append({image.tobytes() for image in pool})
        fit(found, labelled, pool, *rest, **more)

    def watched_scored(found: Any, images: Any) -> NDArray[np.float64]:
        seen.append((trained[-1], {image.tobytes() for image in images}))
        return scored(found, images)

    monkeypatch.setattr(pu_finetuning, "fit", watched_fit)
    monkeypatch.setattr(pu_finetuning, "scored", watched_scored)
    scores(options=FineTuning(steps=1, positive_batch=4, pool_batch=4))
    assert len(seen) == 2
    assert all(not shown & asked for shown, asked in seen)
    assert len(set().union(*(asked for _, asked in seen))) == 120


def test_the_backbone_learns_too() -> None:
    twin = build(NETWORK)
    before = {name: value.clone() for name, value in twin.named_parameters()}

    def once() -> Twin:
        return twin

    labelled, pool = coloured(8, (200, 80, 80), 1), coloured(8, (80, 80, 200), 2)
    finetuned_scores(
        once, labelled, pool, HOW, SilentProgress(), prior=0.5, seed=0, device=torch.device("cpu"),
        options=FineTuning(steps=2, positive_batch=4, pool_batch=4),
    )  # fmt: skip
    assert any(not torch.equal(value, before[name]) for name, value in twin.named_parameters())
