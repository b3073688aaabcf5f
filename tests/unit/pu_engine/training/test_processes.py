"""Several processes on one batch compute what one does on the whole of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from pu_engine.student.catalogue import build
from pu_engine.training.batches import Batch, Part, Sampler
from pu_engine.training.class_weighting import class_weighting
from pu_engine.training.distill_types import DistillationOptions, DistillLoss
from pu_engine.training.objective import Losses, Objective
from pu_engine.training.processes import Processes, joined
from pu_engine.training.synchronised_norm import CpuBatchNorm, synchronise

CLASSES = 4
OPTIONS = DistillationOptions(batch_size=15, loss=DistillLoss(dkd=0.2, standardised=1.0, noisy_labels=0.5))
MIXED = replace(OPTIONS, mixup=0.3, cutmix=1.0)


def part(n: int, labelled: bool) -> Part:
    generator = np.random.default_rng(n)
    return Part(
        images=generator.integers(0, 256, (n, 8, 8, 3), np.uint8),
        targets=generator.normal(size=(n, 2, CLASSES)).astype(np.float32) * 3,
        labels=generator.integers(0, CLASSES, n if labelled else 0),
        features=generator.normal(size=(n, 5)).astype(np.float16),
    )


def batches(options: DistillationOptions, count: int, step: int = 3) -> list[Batch]:
    """A step's batch as each of several processes gets it."""
    each = [Processes(rank=rank, count=count) for rank in range(count)]
    return [Sampler(part(9, True), part(40, False), options, seed=1, processes=one).batch(step) for one in each]


def in_order(parts: list[Batch]) -> tuple[list[bytes], torch.Tensor]:
    """Images, sorted, and the targets and features that belong to them."""
    images = [image.numpy().tobytes() for batch in parts for image in batch.images]
    beside = torch.cat([torch.cat([batch.targets, batch.features], dim=1) for batch in parts])  # type: ignore[list-item]
    order = sorted(range(len(images)), key=images.__getitem__)
    return [images[i] for i in order], beside[order]


@pytest.mark.parametrize("options", [OPTIONS, MIXED])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_processes_share_out_the_rows_of_the_batch(options: DistillationOptions, count: int) -> None:
    (whole,), shared = batches(options, 1), batches(options, count)
    images, beside = in_order(shared)
    expected_images, expected_beside = in_order([whole])
    assert images == expected_images
    torch.testing.assert_close(beside, expected_beside)
    assert sorted(torch.cat([batch.labels for batch in shared]).tolist()) == sorted(whole.labels.tolist())
    sizes = [len(batch.images) for batch in shared]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("options", [OPTIONS, MIXED])
@pytest.mark.parametrize("count", [2, 3, 6])
def test_the_mean_of_the_processes_losses_is_the_whole_batchs(options: DistillationOptions, count: int) -> None:
    """Also where a process has no labelled image: of six, four share four."""
    (whole,), shared = batches(options, 1), batches(options, count)
    weighting = class_weighting(part(9, True), part(40, False), options, seed=0)
    objective = Objective(options.loss, weighting, teacher_accuracy=0.8, widths=None)
    weight = torch.randn(3, CLASSES, generator=torch.Generator().manual_seed(0))

    def losses(batch: Batch) -> Losses:
        logits = batch.images.float().mean(dim=(1, 2)) / 64 @ weight
        found: Losses = objective(logits, None, batch, torch.zeros(CLASSES, dtype=torch.float64), first=True)
        return found

    expected, found = losses(whole), [losses(batch) for batch in shared]
    assert np.mean([one.total.item() for one in found]) == pytest.approx(expected.total.item(), rel=1e-5)
    for name, value in expected.parts.items():
        assert np.mean([one.parts[name].item() for one in found]) == pytest.approx(value.item(), rel=1e-5), name


@pytest.fixture
def alone_in_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Processes]:
    """A group of one, with the sums of a larger one."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with joined(torch.device("cpu")) as processes:
        yield processes


@pytest.mark.parametrize("shape", [(6, 5, 4, 4), (6, 5)])
def test_a_synchronised_norm_is_batch_norm(alone_in_a_group: Processes, shape: tuple[int, ...]) -> None:
    assert dist.is_initialized()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 2
    plain = nn.BatchNorm2d(5) if len(shape) == 4 else nn.BatchNorm1d(5)
    with torch.no_grad():
        plain.weight.copy_(torch.rand(5, generator=generator) + 0.5)
    both = nn.ModuleList([plain.double()])
    synchronise(both, torch.device("cpu"))
    synchronised = both[0]
    assert isinstance(synchronised, CpuBatchNorm)
    reference = nn.BatchNorm2d(5) if len(shape) == 4 else nn.BatchNorm1d(5)
    reference.double().load_state_dict(plain.state_dict())
    outputs, gradients = [], []
    for norm in (reference, synchronised):
        given = x.clone().requires_grad_()
        y = norm(given)
        F.gelu(y).square().sum().backward()  # type: ignore[no-untyped-call]
        assert given.grad is not None
        outputs.append(y)
        gradients.append(given.grad)
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert synchronised.weight.grad is not None
    torch.testing.assert_close(synchronised.weight.grad, reference.weight.grad)
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(synchronised.state_dict()[name], value, msg=name)
    torch.testing.assert_close(synchronised.eval()(x), reference.eval()(x))


@pytest.mark.parametrize("name", ["cifar_resnet8", "mobilenetv4_conv_small_050"])
def test_synchronising_keeps_names_memory_and_answers(name: str) -> None:
    """timm's normalisations end in an activation, which must not get lost."""
    torch.manual_seed(0)
    module, x = build(name, 32, 3, CLASSES), torch.randn(2, 3, 32, 32)
    before, held = module(x), {key: value.data_ptr() for key, value in module.state_dict().items()}
    synchronise(module, torch.device("cpu"))
    assert any(isinstance(layer, CpuBatchNorm) for layer in module.modules())
    assert {key: value.data_ptr() for key, value in module.state_dict().items()} == held
    assert torch.equal(module(x), before)
    assert not module.training


def test_sums_of_one_are_what_was_given() -> None:
    values = torch.tensor([1.0, 2.0])
    assert Processes().total(values).tolist() == [1.0, 2.0]
    assert Processes().mean(values).tolist() == [1.0, 2.0]
