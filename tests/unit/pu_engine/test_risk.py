"""Golden values and gradients, float64: plain Python for values, hand-written derivatives against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pu_engine.risk import Surrogate, naive_risk, nnpu_risk, surrogate_loss, upu_risk

# Case A: a healthy step. Case B: the negative part is below 0, so the step must reverse it.
A = ((1.0, -0.5), (2.0, 0.0, -1.0, 0.5), 0.3)
B = ((3.0, 2.0), (-2.0, -3.0, -2.5, -4.0), 0.5)
Case = tuple[tuple[float, ...], tuple[float, ...], float]


def tensors(case: Case) -> tuple[Tensor, Tensor, float]:
    return (
        torch.tensor(case[0], dtype=torch.float64, requires_grad=True),
        torch.tensor(case[1], dtype=torch.float64, requires_grad=True),
        case[2],
    )


def gradients(case: Case, surrogate: Surrogate) -> tuple[list[float], list[float]]:
    positive, unlabelled, prior = tensors(case)
    nnpu_risk(positive, unlabelled, prior, surrogate=surrogate).backward()  # type: ignore[no-untyped-call]
    assert positive.grad is not None
    assert unlabelled.grad is not None
    return positive.grad.tolist(), unlabelled.grad.tolist()


@pytest.mark.parametrize(
    ("case", "surrogate", "expected"),
    [
        (A, "sigmoid", (0.44570038, 0.55429962, 0.56804946)),
        (A, "logistic", (0.64366934, 0.89366934, 1.02685347)),
        (B, "sigmoid", (0.08331440, 0.91668560, 0.06511830)),
        (B, "logistic", (0.08775768, 2.58775768, 0.06813876)),
    ],
)
def test_surrogate_means(case: Case, surrogate: Surrogate, expected: tuple[float, float, float]) -> None:
    positive, unlabelled, _ = tensors(case)
    means = (
        surrogate_loss(positive, surrogate).mean().item(),
        surrogate_loss(-positive, surrogate).mean().item(),
        surrogate_loss(-unlabelled, surrogate).mean().item(),
    )
    assert means == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("case", "surrogate", "expected"),
    [
        (A, "sigmoid", 0.53546968),
        (A, "logistic", 0.95185347),
        (B, "sigmoid", -0.35156731),
        (B, "logistic", -1.18186124),
    ],
)
def test_unbiased_risk(case: Case, surrogate: Surrogate, expected: float) -> None:
    assert upu_risk(*tensors(case), surrogate=surrogate).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("case", "surrogate", "expected"),
    [
        (A, "sigmoid", 0.53546968),
        (A, "logistic", 0.95185347),
        (B, "sigmoid", 0.04165720),
        (B, "logistic", 0.04387884),
    ],
)
def test_non_negative_risk(case: Case, surrogate: Surrogate, expected: float) -> None:
    assert nnpu_risk(*tensors(case), surrogate=surrogate).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("case", "surrogate", "at_positive", "at_unlabelled"),
    [
        (A, "sigmoid", [-0.05898358, -0.07050111], [0.02624840, 0.06250000, 0.04915298, 0.05875093]),
        (A, "logistic", [-0.15, -0.15], [0.22019927, 0.125, 0.06723536, 0.15561483]),
        (B, "sigmoid", [0.01129416, 0.02624840], [-0.02624840, -0.01129416, -0.01752593, -0.00441568]),
        (B, "logistic", [0.23814353, 0.22019927], [-0.02980073, -0.01185647, -0.01896455, -0.00449655]),
    ],
)
def test_step_gradients(case: Case, surrogate: Surrogate, at_positive: list[float], at_unlabelled: list[float]) -> None:
    positive, unlabelled = gradients(case, surrogate)
    assert positive == pytest.approx(at_positive, abs=1e-7)
    assert unlabelled == pytest.approx(at_unlabelled, abs=1e-7)


def test_clamped_risk_pushes_positives_down_and_the_pool_up() -> None:
    positive, unlabelled = gradients(B, "sigmoid")
    assert min(positive) > 0 > max(unlabelled)


def test_a_tolerance_keeps_the_unbiased_gradient() -> None:
    positive, unlabelled, prior = tensors(B)
    nnpu_risk(positive, unlabelled, prior, beta=0.5).backward()  # type: ignore[no-untyped-call]
    free, loose, _ = tensors(B)
    upu_risk(free, loose, prior).backward()  # type: ignore[no-untyped-call]
    assert torch.equal(positive.grad, free.grad)  # type: ignore[arg-type]
    assert torch.equal(unlabelled.grad, loose.grad)  # type: ignore[arg-type]


def test_gamma_scales_the_reversed_step_only() -> None:
    positive, unlabelled, prior = tensors(B)
    nnpu_risk(positive, unlabelled, prior, gamma=0.5).backward()  # type: ignore[no-untyped-call]
    assert positive.grad is not None
    assert positive.grad.tolist() == pytest.approx([0.01129416 / 2, 0.02624840 / 2], abs=1e-7)


def test_values_at_the_published_prior() -> None:
    first = nnpu_risk(torch.tensor([2.0, -1.0]), torch.tensor([0.5, -0.5, 3.0]), 0.21)
    positive = torch.tensor([2.0, 3.0], requires_grad=True)
    second = nnpu_risk(positive, torch.tensor([-4.0, -5.0, -3.0]), 0.21)
    second.backward()  # type: ignore[no-untyped-call]
    assert first.item() == pytest.approx(0.6194129574, abs=1e-6)
    assert second.item() == pytest.approx(0.0174960235, abs=1e-6)
    assert positive.grad is not None
    assert positive.grad.tolist() == pytest.approx([0.0110243265, 0.0047435493], abs=1e-6)


@pytest.mark.parametrize(("case", "expected"), [(A, 0.83526140), (B, 0.07794822)])
def test_naive_risk(case: Case, expected: float) -> None:
    positive, unlabelled, _ = tensors(case)
    assert naive_risk(positive, unlabelled).item() == pytest.approx(expected, abs=1e-7)


def test_large_scores_stay_finite() -> None:
    huge = torch.tensor([1e4, -1e4])
    for surrogate in ("sigmoid", "logistic"):
        assert torch.isfinite(nnpu_risk(huge, huge, 0.5, surrogate=surrogate))


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1])
def test_a_prior_out_of_range_raises(prior: float) -> None:
    with pytest.raises(ValueError, match="prior must be in"):
        nnpu_risk(torch.ones(1), torch.ones(1), prior)


def test_an_empty_group_raises() -> None:
    with pytest.raises(ValueError, match="P=0, U=3"):
        naive_risk(torch.ones(0), torch.ones(3))
