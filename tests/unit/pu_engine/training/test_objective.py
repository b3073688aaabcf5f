"""Which parts make a batch's loss, and what the classes weigh in it."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pu_engine.training import distill_loss
from pu_engine.training.batches import Batch, Part
from pu_engine.training.class_weighting import class_weighting
from pu_engine.training.distill_types import DistillationOptions, DistillLoss
from pu_engine.training.objective import Losses, Objective

CLASSES = 4
NOTHING = DistillLoss(kl=0.0, labels=0.0)


def part(n: int, labelled: bool) -> Part:
    rng = np.random.default_rng(n)
    targets = rng.normal(size=(n, 2, CLASSES)).astype(np.float32) * 3
    return Part(
        images=np.zeros((n, 8, 8, 3), np.uint8),
        targets=targets,
        labels=targets[:, 0].argmax(axis=1) if labelled else np.zeros(0, np.int64),
    )


def batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randn(12, CLASSES, generator=generator) * 3
    return Batch(
        images=torch.zeros(12, 8, 8, 3, dtype=torch.uint8),
        targets=targets,
        labels=torch.tensor([0, 1, 2, 3]),
        features=torch.randn(12, 5, generator=generator),
    )


def objective(loss: DistillLoss, rule: str = "none", radius: float | None = None) -> Objective:
    options = DistillationOptions(batch_size=12, class_weights=rule, radius=radius, loss=loss)
    weighting = class_weighting(part(9, labelled=True), part(40, labelled=False), options, seed=0)
    torch.manual_seed(0)
    return Objective(loss, weighting, teacher_accuracy=0.8, widths=(6, 5))


def losses(loss: DistillLoss, given: Batch, logits: Tensor, **rule: object) -> Losses:
    made = objective(loss, **rule)  # type: ignore[arg-type]
    found: Losses = made(logits, torch.ones(12, 6), given, torch.zeros(CLASSES, dtype=torch.float64), first=True)
    return found


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(12, CLASSES, generator=torch.Generator().manual_seed(9))


def test_the_default_is_hintons_loss_and_a_tenth_of_the_labels(logits: Tensor) -> None:
    given = batch()
    found = losses(DistillLoss(), given, logits)
    kl = distill_loss.kd_rows(logits, given.targets, 4.0).mean()
    labels = F.cross_entropy(logits[:4], given.labels)
    assert found.total.item() == pytest.approx(float(kl + 0.1 * labels))
    assert set(found.parts) == {"kl", "labels"}


@pytest.mark.parametrize("name", [f.name for f in fields(DistillLoss) if f.name != "temperature"])
def test_each_part_stands_alone_and_counts_by_its_weight(logits: Tensor, name: str) -> None:
    once = losses(replace(NOTHING, **{name: 1.0}), batch(), logits)
    thrice = losses(replace(NOTHING, **{name: 3.0}), batch(), logits)
    assert set(once.parts) == {name}
    assert once.total.item() > 0
    assert thrice.total.item() == pytest.approx(3 * once.total.item(), rel=1e-5)
    assert float(thrice.parts[name]) == pytest.approx(float(once.parts[name]), rel=1e-6)


def test_parts_add_up(logits: Tensor) -> None:
    both = losses(replace(NOTHING, dkd=0.5, dist=2.0), batch(), logits)
    alone = [losses(replace(NOTHING, **part), batch(), logits).total.item() for part in ({"dkd": 0.5}, {"dist": 2.0})]
    assert both.total.item() == pytest.approx(sum(alone), rel=1e-6)


def test_decoupled_loss_takes_labels_where_there_are_some(logits: Tensor) -> None:
    given = batch()
    target = torch.cat([given.labels, given.targets.argmax(dim=1)[4:]])
    expected = distill_loss.dkd_rows(logits, given.targets, target, 4.0).mean()
    assert losses(replace(NOTHING, dkd=1.0), given, logits).total.item() == pytest.approx(float(expected))


def test_labels_of_mixed_images_count_by_their_shares(logits: Tensor) -> None:
    mixed = replace(batch(), partner_labels=torch.tensor([3, 2, 1, 0]), share=0.25)
    own = F.cross_entropy(logits[:4], mixed.labels)
    other = F.cross_entropy(logits[:4], torch.tensor([3, 2, 1, 0]))
    found = losses(replace(NOTHING, labels=1.0), mixed, logits)
    assert found.total.item() == pytest.approx(float(0.25 * own + 0.75 * other))


def test_only_asked_for_parts_learn_something_of_their_own() -> None:
    assert list(objective(DistillLoss()).parameters()) == []
    noisy, hinted = objective(replace(NOTHING, noisy_labels=1.0)), objective(replace(NOTHING, hints=1.0))
    assert [p.shape for p in noisy.parameters()] == [(CLASSES, CLASSES - 1)]
    assert [p.shape for p in hinted.parameters()] == [(5, 6), (5,)]


def larger_members(rule: str) -> set[int]:
    """Of twenty batches: which of the rule's two members had the larger loss."""
    static = objective(DistillLoss(), rule).weighting.static
    found = [losses(DistillLoss(), batch(seed), torch.zeros(12, CLASSES), rule=rule) for seed in range(20)]
    return {next(i for i, row in enumerate(static) if torch.equal(row, one.class_weights)) for one in found}


def test_of_two_sided_weights_now_the_one_and_now_the_other_has_the_larger_loss() -> None:
    assert larger_members("two_sided") == {0, 1}


def test_of_the_published_weights_the_noisy_ones_always_have_the_larger_loss() -> None:
    assert larger_members("paper") == {1}


@pytest.mark.parametrize("rule", ["chi2", "kl"])
def test_the_worst_case_follows_the_class_that_is_worst_now(rule: str) -> None:
    made = objective(DistillLoss(), rule=rule)
    for worst in range(CLASSES):
        class_loss = torch.ones(CLASSES, dtype=torch.float64)
        class_loss[worst] = 3.0
        assert int(made.weighting.class_weights(class_loss)[0].argmax()) == worst
