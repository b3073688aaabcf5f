"""The published head: golden value, and what it finds on a synthetic mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pu_engine.picking.attention_head import AttentionHead, attention_score, initial_head, paper_scores
from pu_engine.picking.pu_folds import make_folds
from pu_engine.progress import SilentProgress


def test_gate_and_score_have_the_golden_values() -> None:
    head = AttentionHead(
        squeeze=torch.tensor([[0.1, 0.2, 0.3, 0.4], [-0.5, 0.5, -0.5, 0.5]], dtype=torch.float64),
        excite=torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64),
        last=torch.tensor([0.5, -0.25, 0.1, 1.0], dtype=torch.float64),
        bias=torch.tensor(0.2, dtype=torch.float64),
    )
    features = torch.tensor([[1.0, 0.5, 2.0, 0.0]], dtype=torch.float64)
    # hidden (.8, 0), gate (.68997448, .5, .68997448, .31002552)
    assert attention_score(features, head).item() == pytest.approx(0.62048214, abs=1e-7)


@pytest.mark.parametrize(("width", "hidden"), [(112, 7), (32, 4), (8, 4)])
def test_a_sixteenth_of_the_width_is_hidden_but_at_least_four_units(width: int, hidden: int) -> None:
    head = initial_head(width, torch.Generator().manual_seed(0))
    assert head.squeeze.shape == (hidden, width)
    assert head.excite.shape == (width, hidden)


def test_images_of_the_source_come_first_and_a_repeated_run_is_equal() -> None:
    torch.set_num_threads(1)
    generator = np.random.default_rng(7)
    shift = np.linspace(0.0, 2.4, 16)
    truth = np.arange(2000) < 400
    pool = (generator.normal(size=(2000, 16)) + truth[:, None] * shift).astype(np.float32)
    positive = (generator.normal(size=(200, 16)) + shift).astype(np.float32)
    folds = make_folds(positive, np.arange(200) % 2, lambda: [pool], np.random.default_rng(0))
    first, again = (paper_scores(folds, 0.2, 0, SilentProgress(), steps=60) for _ in range(2))
    assert (first == again).all()
    assert truth[np.argsort(-first)[:400]].mean() > 0.65  # 0.2 by chance
