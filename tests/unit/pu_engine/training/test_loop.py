from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pu_engine.budget import steps_of
from pu_engine.distillation import build_task
from pu_engine.errors import EngineError
from pu_engine.progress import SilentProgress
from pu_engine.results import load
from pu_engine.student.catalogue import build
from pu_engine.student.spec import describe
from pu_engine.training import checkpoints, loop
from pu_engine.training.batches import Draws, Part, Sampler, draw_weights, labelled_rows
from pu_engine.training.checkpoints import TrainingState
from pu_engine.training.class_weighting import class_weighting, running_class_loss
from pu_engine.training.distill_types import DistillationOptions, DistillLoss
from pu_engine.training.evaluation import agreement_with_teacher, model_input, predict
from pu_engine.training.loop import Task, checkpoint_steps, learning_rate, train
from pu_engine.training.targets import CachedTargets, PrefetchedTargets
from pu_engine.types import (
    TrainingSet,
)

OPTIONS = DistillationOptions(steps=30, batch_size=16, learning_rate=0.05)


class Interrupted(Exception):
    """Stops a training from within its progress."""


class StopAt(SilentProgress):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def update(self, done: int, total: int, unit: str, metrics: Any = None) -> None:
        if done == self.step:
            raise Interrupted


class Exploding(nn.Module):
    """A linear network whose weights become infinite at given forwards in train mode."""

    def __init__(self, at: set[int]) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.at, self.seen = at, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        logits: Tensor = self.layer(x.mean(dim=(2, 3)))
        return logits * math.nan if self.training and self.seen in self.at else logits


@pytest.fixture
def task(small_job: Callable[..., Any]) -> Task:
    inputs = small_job().inputs(OPTIONS)
    arrays = load(TrainingSet, inputs.gathering.path)
    spec = describe("cifar_resnet8", network(), arrays, ("red", "green", "blue"))
    return replace(build_task(inputs, spec, steps_of(None, OPTIONS), "cached"), checkpoint_steps=10)


def network() -> nn.Module:
    torch.manual_seed(0)
    return build("cifar_resnet8", 16, 3, 3)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def part(n: int, labelled: bool = False) -> Part:
    images = np.arange(n, dtype=np.uint8)[:, None, None, None] + np.zeros((n, 8, 8, 3), np.uint8) + 1
    return Part(
        images=images,
        targets=np.eye(3, dtype=np.float32)[np.arange(n) % 3][:, None].repeat(2, axis=1) * 5,
        labels=np.arange(n if labelled else 0, dtype=np.int64) % 3,
    )


def test_rate_warms_up_to_the_peak_and_falls_to_zero() -> None:
    options = DistillationOptions(steps=100, learning_rate=0.1, warmup_share=0.05)
    rates = [learning_rate(step, 100, options) for step in range(101)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[5] == pytest.approx(0.1)
    assert rates[52] == pytest.approx(0.1 * 0.5 * (1 + math.cos(math.pi * 47 / 95)))
    assert rates[100] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(rates[5:]))


@given(n=st.integers(1, 20), start=st.integers(0, 100), count=st.integers(0, 50))
def test_every_epoch_shows_each_image_once(n: int, start: int, count: int) -> None:
    whole = Draws(n, None, seed=1, stream=0).take(0, start + count)
    assert np.array_equal(Draws(n, None, seed=1, stream=0).take(start, count), whole[start:])
    for epoch in range(len(whole) // n):
        assert sorted(whole[epoch * n : (epoch + 1) * n]) == list(range(n))


@pytest.mark.parametrize(
    ("share", "labelled", "picked", "rows"),
    [
        (0.25, 10, 50, 32),
        (0.001, 10, 50, 1),
        (0.999, 10, 50, 127),
        (1.0, 10, 50, 128),
        (0.25, 10, 0, 128),
        (0.0, 10, 50, 0),
    ],
)
def test_a_batch_holds_the_labelled_share(share: float, labelled: int, picked: int, rows: int) -> None:
    assert labelled_rows(128, share, labelled, picked) == rows


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    options = DistillationOptions(batch_size=8)
    labelled, picked = part(5, labelled=True), part(40)
    sampler = Sampler(labelled, picked, options, seed=1)
    batch, again = sampler.batch(7), Sampler(labelled, picked, options, seed=1).batch(7)
    other = sampler.batch(8)
    assert torch.equal(batch.images, again.images)
    assert not torch.equal(batch.images, other.images)
    assert len(batch.labels) == 2
    assert torch.equal(batch.targets[:2].argmax(dim=1), batch.labels)


def test_student_input_is_normalised_and_channels_last(task: Task) -> None:
    x = model_input(torch.full((2, 4, 4, 3), 255, dtype=torch.uint8), task.preprocessing)
    assert x.shape == (2, 3, 4, 4)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


def test_large_images_are_answered_in_small_batches(task: Task) -> None:
    """A batch of 256 at 224 pixels holds 150 MB before the first layer."""
    seen: list[int] = []

    class Watched(Exploding):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    for size, batches in {16: [100], 224: [83, 17]}.items():
        seen.clear()
        images = np.zeros((100, size, size, 3), np.uint8)
        assert predict(Watched(set()), images, task.preprocessing).shape == (100, 3)
        assert seen == batches


def test_training_learns_what_the_teacher_says(task: Task, tmp_path: Path) -> None:
    module = network()
    curve = train(module, task, tmp_path / "c", SilentProgress())
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]
    assert curve[-1]["held_out_agreement"] >= 0.9
    assert not module.training


@pytest.mark.parametrize("stopped", [1, 10, 17, 30])
def test_an_interrupted_training_ends_in_the_same_weights(task: Task, tmp_path: Path, stopped: int) -> None:
    undisturbed, resumed = network(), network()
    with loop.repeatable(1):
        curve = train(undisturbed, task, tmp_path / "a", SilentProgress())
        with pytest.raises(Interrupted):
            train(network(), task, tmp_path / "b", StopAt(stopped))
        resumed_curve = train(resumed, task, tmp_path / "b", SilentProgress())
    assert resumed_curve == curve
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


EVERYTHING = replace(
    OPTIONS, average_decay=0.9, mixup=0.2, cutmix=1.0, clip_norm=1.0, class_weights="two_sided", draws="balanced",
    loss=DistillLoss(dkd=0.1, dist=0.5, noisy_labels=0.5, standardised=1.0),
)  # fmt: skip


def test_a_training_with_every_option_killed_thrice_ends_in_the_same_weights(task: Task, tmp_path: Path) -> None:
    """Averages, mixed views and what the objective learns are kept or follow from the step."""
    whole = replace(task, options=EVERYTHING)
    undisturbed, resumed = network(), network()
    with loop.repeatable(1):
        curve = train(undisturbed, whole, tmp_path / "a", SilentProgress())
        for stopped in np.sort(np.random.default_rng(0).choice(np.arange(1, 30), 3, replace=False)):
            with pytest.raises(Interrupted):
                train(network(), whole, tmp_path / "b", StopAt(int(stopped)))
        assert train(resumed, whole, tmp_path / "b", SilentProgress()) == curve
    assert {"kl", "dkd", "dist", "noisy_labels", "standardised", "labels"} <= set(curve[0])
    for name, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_student_is_the_mean_of_its_weights_where_one_is_kept(task: Task, tmp_path: Path) -> None:
    plain, mean = network(), network()
    train(plain, task, tmp_path / "a", SilentProgress())
    curve = train(mean, replace(task, options=replace(OPTIONS, average_decay=0.5)), tmp_path / "b", SilentProgress())
    assert not torch.equal(plain.state_dict()["head.weight"], mean.state_dict()["head.weight"])
    assert curve[-1]["held_out_agreement"] == agreement_with_teacher(mean, task.held_out, task.preprocessing)


def test_half_precision_learns_too(task: Task, tmp_path: Path) -> None:
    curve = train(
        network(), replace(task, options=replace(OPTIONS, precision="bf16")), tmp_path / "c", SilentProgress()
    )
    assert curve[-1]["loss"] < 0.5 * curve[0]["loss"]


def test_hints_bring_the_students_features_to_the_teachers(task: Task, tmp_path: Path) -> None:
    def with_features(own: Part) -> Part:
        return replace(own, features=own.targets.mean(axis=1).astype(np.float16))

    hinted = replace(
        task, labelled=with_features(task.labelled), picked=with_features(task.picked),
        options=replace(OPTIONS, loss=DistillLoss(hints=1.0)),
    )  # fmt: skip
    curve = train(network(), hinted, tmp_path / "c", SilentProgress())
    assert curve[-1]["hints"] < 0.5 * curve[0]["hints"]


def test_the_gradient_is_bounded(task: Task, tmp_path: Path) -> None:
    """A bound of nearly nothing leaves the weights where they were, but for the decay, which is switched off."""
    module, before = network(), weights(network())
    options = replace(OPTIONS, clip_norm=1e-9, weight_decay=0.0)
    train(module, replace(task, options=options), tmp_path / "c", SilentProgress())
    torch.testing.assert_close(module.state_dict()["head.weight"], before["head.weight"], rtol=0, atol=1e-6)


def test_targets_come_to_the_common_scale(task: Task) -> None:
    plain = CachedTargets(task.labelled, task.picked, OPTIONS, 0).batch(3)
    scaled = CachedTargets(task.labelled, task.picked, OPTIONS, 0, scale=0.5).batch(3)
    torch.testing.assert_close(scaled.targets, 0.5 * plain.targets)


def test_a_bank_shows_a_view_with_its_own_target() -> None:
    views = np.arange(5 * 4, dtype=np.uint8).reshape(5, 4)
    bank = Part(
        images=np.broadcast_to(views[:, :, None, None, None], (5, 4, 8, 8, 3)).copy(),
        targets=np.repeat(views[:, :, None], 3, axis=2).astype(np.float32),
        labels=np.arange(5),
    )
    batch = Sampler(bank, bank, DistillationOptions(batch_size=16), seed=0).batch(2)
    assert (batch.images[:, 0, 0, 0] == batch.targets[:, 0]).all()
    assert len({int(v) % 4 for v in batch.targets[:, 0]}) > 1


def test_prefetched_batches_are_those_of_the_source(task: Task) -> None:
    plain = CachedTargets(task.labelled, task.picked, OPTIONS, 0)
    ahead = PrefetchedTargets(plain, steps=6)
    for step in (0, 1, 2, 4, 5):  # a roll-back or a resumption asks out of turn
        assert torch.equal(ahead.batch(step).images, plain.batch(step).images)


def test_weighted_rows_come_in_proportion_and_no_epoch_is_off_by_more_than_one() -> None:
    drawn = Draws(8, np.array([1, 1, 1, 1, 2, 2, 4, 4]), seed=0, stream=1)
    counts = np.bincount(drawn.take(0, 80), minlength=8)
    expected = 80 * np.array([1, 1, 1, 1, 2, 2, 4, 4]) / 16
    assert np.abs(counts - expected).max() <= 10
    assert counts.sum() == 80
    for epoch in range(10):
        once = np.bincount(drawn.take(8 * epoch, 8), minlength=8)
        assert np.abs(once - expected / 10).max() < 1


def test_rows_without_weight_are_never_drawn() -> None:
    drawn = Draws(4, np.array([0.0, 1.0, 0.0, 1.0]), seed=0, stream=1).take(0, 40)
    assert set(drawn) == {1, 3}


def test_balanced_draws_bring_the_classes_to_equal_shares() -> None:
    classes = np.array([0] * 24 + [1] * 6)
    skewed = replace(part(30), targets=np.eye(3, dtype=np.float32)[classes][:, None].repeat(2, axis=1))
    weights = draw_weights(skewed, "balanced")
    assert weights is not None
    assert np.bincount(classes, weights=weights).tolist() == pytest.approx([15.0, 15.0])
    assert draw_weights(skewed, "weighted") is None
    given = replace(skewed, weights=np.linspace(0.1, 1, 30, dtype=np.float32))
    assert draw_weights(given, "uniform") is None
    assert draw_weights(given, "weighted") is not None


@pytest.mark.parametrize("draws", ["weighted", "balanced", "uniform"])
def test_no_picked_image_has_no_weights(draws: str) -> None:
    assert draw_weights(replace(part(0), weights=np.zeros(0, np.float32)), draws) is None


def test_checkpoints_of_other_inputs_are_ignored(task: Task, tmp_path: Path) -> None:
    train(network(), task, tmp_path / "c", SilentProgress())
    module = network()
    optimiser = torch.optim.SGD(module.parameters(), momentum=0.9)
    assert checkpoints.restore(tmp_path / "c", "another key", module, optimiser) is None


def test_a_damaged_checkpoint_gives_way_to_the_one_before(task: Task, tmp_path: Path) -> None:
    train(network(), task, tmp_path / "c", SilentProgress())
    kept = sorted((tmp_path / "c").glob("step-*.safetensors"))
    assert [p.stem for p in kept] == ["step-00000010", "step-00000020"]
    kept[-1].write_bytes(kept[-1].read_bytes()[:-8] + b"\0" * 8)
    module = nn.ModuleDict({"student": network(), "objective": nn.Module()})
    state = checkpoints.restore(
        tmp_path / "c", task.key, module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    )
    assert state is not None
    assert state.step == 10


def test_a_loss_that_is_not_finite_rolls_back_once_at_half_the_rate(task: Task, tmp_path: Path) -> None:
    progress = SilentProgress()
    curve = train(Exploding({13}), task, tmp_path / "c", progress)
    assert progress.warnings == ["The loss was not finite at step 12; training goes on from step 10 at half the rate."]
    rates = {row["step"]: row["learning_rate"] for row in curve}
    assert rates[10] == pytest.approx(learning_rate(9, 30, OPTIONS))
    assert rates[11] == pytest.approx(0.5 * learning_rate(10, 30, OPTIONS))
    assert [row["step"] for row in curve] == [float(step) for step in range(1, 31)]


def test_a_loss_that_explodes_rolls_back_once_and_then_fails(task: Task, tmp_path: Path) -> None:
    wild = replace(task, options=replace(OPTIONS, learning_rate=1e4), checkpoint_steps=1)
    progress = SilentProgress()
    with pytest.raises(EngineError) as caught:
        train(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), wild, tmp_path / "c", progress)
    assert caught.value.code == "TRAINING_DIVERGED"
    assert len(progress.warnings) == 1
    assert "more than 10 times that of a student which knows nothing" in progress.warnings[0]


def test_a_high_loss_of_one_batch_is_no_divergence() -> None:
    state = TrainingState(class_loss=torch.zeros(3), ignorant_loss=2.0, recent_loss=0.5)
    assert loop.divergence(5, 150.0, state) == ""
    assert "more than 10 times" in loop.divergence(5, 250.0, state)
    assert loop.divergence(5, math.inf, state) == "not finite"


def test_a_second_loss_that_is_not_finite_is_a_divergence(task: Task, tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        train(Exploding({13, 20}), task, tmp_path / "c", SilentProgress())
    assert caught.value.code == "TRAINING_DIVERGED"
    assert caught.value.details["rate_scale"] == "0.5"


def test_a_roll_back_survives_a_restart(task: Task, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(Exploding({13}), task, tmp_path / "c", StopAt(15))
    with pytest.raises(EngineError) as caught:
        train(Exploding({2}), task, tmp_path / "c", SilentProgress())
    assert caught.value.code == "TRAINING_DIVERGED"


@pytest.mark.parametrize(("macs", "batch", "steps"), [(1, 1, 100), (40_551_040, 128, 6), (5_000_000_000, 512, 1)])
def test_checkpoints_come_about_every_twenty_seconds_by_count(macs: int, batch: int, steps: int) -> None:
    assert checkpoint_steps(macs, batch) == steps


def test_a_gpu_keeps_fewer_checkpoints() -> None:
    """There a ResNet-20's step takes milliseconds, so that six of them are no time at all."""
    assert checkpoint_steps(40_551_040, 128, torch.device("cuda")) == 500
    assert checkpoint_steps(5_000_000_000, 512, torch.device("cuda")) == 3


@pytest.mark.parametrize("diverges", [False, True])
def test_numbers_read_every_few_steps_give_the_same_training(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diverges: bool
) -> None:
    """What a GPU does: a loss that is not finite is found later, and what was done since is undone."""

    def trained(name: str) -> tuple[list[dict[str, float]], dict[str, Tensor], list[str]]:
        torch.manual_seed(0)
        module, progress = Exploding({13}) if diverges else network(), SilentProgress()
        curve = train(module, task, tmp_path / name, progress)
        return curve, weights(module), progress.warnings

    curve, final, warnings = trained("each")
    monkeypatch.setattr(loop, "row_steps", lambda task: 15)
    monkeypatch.setattr(loop, "due", lambda run, state: state.step % 5 == 0)
    late_curve, late_final, late_warnings = trained("late")
    assert len(warnings) == diverges
    assert late_warnings == warnings
    assert all(torch.equal(value, late_final[name]) for name, value in final.items())
    assert [row["step"] for row in late_curve] == [15, 30]
    assert late_curve[1]["loss"] == pytest.approx(np.mean([row["loss"] for row in curve[15:]]))


def test_running_class_loss_moves_only_classes_that_are_there() -> None:
    before = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    after = running_class_loss(before, torch.tensor([2.0, 4.0]), torch.tensor([0, 0]), first=False)
    assert after.tolist() == pytest.approx([0.9 * 1 + 0.1 * 3, 2.0, 3.0])


def test_first_class_losses_start_from_the_batch_mean() -> None:
    after = running_class_loss(
        torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), first=True
    )
    assert after.tolist() == pytest.approx([2.0, 2.0])


@pytest.mark.parametrize("rule", ["chi2", "kl"])
def test_a_ball_weighs_the_worst_class_up_and_keeps_the_mean_weight(rule: str) -> None:
    labelled, picked = part(9, labelled=True), part(30)
    weighting = class_weighting(labelled, picked, DistillationOptions(class_weights=rule), seed=0)
    weights = weighting.class_weights(torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64))[0]
    assert weights[2] > 1 > weights[0]
    assert weights @ torch.from_numpy(weighting.shares).float() == pytest.approx(1.0, abs=1e-6)


def test_shares_are_those_of_the_batches_drawn() -> None:
    """The mirror's class counts as the image's own does, and the labelled rows are whole ones."""
    labelled, picked = part(9, labelled=True), part(30)
    both_views = np.eye(3, dtype=np.float32)[np.array([[0, 2]] * 30)]
    options = DistillationOptions(class_weights="chi2", batch_size=6, labelled_share=0.3)
    shares = class_weighting(labelled, replace(picked, targets=both_views), options, seed=0).shares
    assert shares.tolist() == pytest.approx([2 / 6 / 3 + 4 / 6 / 2, 2 / 6 / 3, 2 / 6 / 3 + 4 / 6 / 2])


def test_a_class_that_only_mirrors_show_still_weighs_something() -> None:
    seen_in_mirrors = replace(part(30), targets=np.eye(3, dtype=np.float32)[np.array([[0, 2]] * 30)])
    options = DistillationOptions(class_weights="kl", labelled_share=0.0)
    weighting = class_weighting(part(9, labelled=True), seen_in_mirrors, options, seed=0)
    weights = weighting.class_weights(torch.tensor([1.0, 1.0, 2.0], dtype=torch.float64))[0, [0, 2]]
    assert weights[1] > 1 > weights[0] > 0


def test_labelled_images_alone_can_fill_a_batch() -> None:
    options = DistillationOptions(batch_size=8, labelled_share=1.0)
    batch = Sampler(part(5, labelled=True), part(40), options, seed=1).batch(3)
    assert len(batch.labels) == len(batch.images) == 8


def test_no_weighting_weighs_one() -> None:
    weighting = class_weighting(part(9, labelled=True), part(30), DistillationOptions(), seed=0)
    assert weighting.class_weights(torch.zeros(3)).tolist() == [[1.0, 1.0, 1.0]]


def test_paper_weights_favour_the_rare_class_and_their_noise_only_adds() -> None:
    labelled = part(9, labelled=True)
    picked = replace(part(30), targets=np.tile(np.array([9, 0, -9], np.float32), (30, 2, 1)))
    weighting = class_weighting(labelled, picked, DistillationOptions(class_weights="paper"), seed=0)
    plain, noisy = weighting.static
    assert plain[0] < plain[1]
    assert (noisy >= plain).all()
    assert ((noisy - plain) <= 0.1).all()


def test_paper_weights_count_all_images_in_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    options = DistillationOptions(class_weights="paper")
    whole = class_weighting(part(9, labelled=True), part(30), options, seed=0)
    monkeypatch.setattr("pu_engine.training.class_weighting.CHUNK_ROWS", 4)
    chunks = class_weighting(part(9, labelled=True), part(30), options, seed=0)
    assert torch.allclose(whole.static, chunks.static, rtol=1e-6)


def test_images_and_targets_of_a_part_stay_on_the_disk(task: Task) -> None:
    for own in (task.labelled, task.picked, task.held_out):
        assert isinstance(own.images, np.memmap)
        assert isinstance(own.targets, np.memmap)


def test_repeatable_restores_what_was_set() -> None:
    before = torch.get_num_threads()
    with loop.repeatable(before + 1):
        assert torch.get_num_threads() == before + 1
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == before
    assert not torch.are_deterministic_algorithms_enabled()
