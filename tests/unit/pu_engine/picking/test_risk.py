"""Golden values and gradients, float64: plain Python for values, hand-written derivatives against autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pu_engine.picking.risk import (
    Surrogate,
    answer_entropy,
    cvir_kept,
    dist_pu_risk,
    naive_risk,
    nnpu_risk,
    soft_label_risk,
    surrogate_loss,
    upu_risk,
    vpu_regulariser,
    vpu_risk,
)

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


@pytest.mark.parametrize(("case", "expected"), [(A, 0.07812255), (B, -2.64379204)])
def test_variational_risk(case: Case, expected: float) -> None:
    positive, unlabelled, _ = tensors(case)
    assert vpu_risk(positive, unlabelled).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("case", "expected"), [(A, 0.00650540), (B, 0.00024057)])
def test_variational_regulariser_of_one_pair_mixed_by_their_scores(case: Case, expected: float) -> None:
    positive, unlabelled, _ = tensors(case)
    share = torch.tensor([0.3], dtype=torch.float64)
    mixed = share * positive[:1] + (1 - share) * unlabelled[:1]
    assert vpu_regulariser(mixed, unlabelled[:1], share).item() == pytest.approx(expected, abs=1e-7)


def test_the_regulariser_trains_the_mixed_image_only() -> None:
    mixed, unlabelled = (torch.tensor([x], requires_grad=True) for x in (0.3, 1.2))
    vpu_regulariser(mixed, unlabelled, torch.tensor([0.4])).backward()  # type: ignore[no-untyped-call]
    assert mixed.grad is not None
    assert unlabelled.grad is None


@pytest.mark.parametrize(("case", "expected"), [(A, 0.53546968), (B, 0.51819610)])
def test_label_distribution_risk(case: Case, expected: float) -> None:
    assert dist_pu_risk(*tensors(case)).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(("case", "expected"), [(A, 0.57588287), (B, 0.22870719)])
def test_entropy_of_the_answers(case: Case, expected: float) -> None:
    assert answer_entropy(tensors(case)[1]).item() == pytest.approx(expected, abs=1e-7)


def test_answers_that_are_sure_have_no_entropy_and_a_finite_gradient() -> None:
    scores = torch.tensor([200.0, -200.0], requires_grad=True)
    answer_entropy(scores).backward()  # type: ignore[no-untyped-call]
    assert answer_entropy(scores).item() == pytest.approx(0.0, abs=1e-7)
    assert torch.isfinite(scores.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("case", [A, B])
def test_without_belief_soft_labels_are_the_naive_risk(case: Case) -> None:
    positive, unlabelled, _ = tensors(case)
    assert soft_label_risk(positive, unlabelled, torch.zeros(4)).item() == pytest.approx(
        naive_risk(positive, unlabelled).item(), abs=1e-12
    )


def test_a_believed_pool_image_counts_as_a_labelled_one() -> None:
    labelled, pool = torch.tensor([1.0, -0.5]), torch.tensor([2.0, -1.0, 0.5])
    believed = soft_label_risk(labelled, pool, torch.tensor([1.0, 0.0, 0.0]))
    assert believed.item() == pytest.approx(naive_risk(torch.tensor([1.0, -0.5, 2.0]), pool[1:]).item())
    half = soft_label_risk(torch.tensor([1.0]), torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.0]))
    # (ln(1+e^-1) + .5 ln(1+e^-2)) / 1.5 and (.5 ln(1+e^2) + ln(1+e^-1)) / 1.5, halved
    assert half.item() == pytest.approx((0.37672499 / 1.5 + 1.37672576 / 1.5) / 2, abs=1e-6)


POOL_ANSWERS = torch.tensor([0.97, 0.85, 0.5, 0.4, 0.35, 0.2, 0.15, 0.1, 0.05, 0.02], dtype=torch.float64)


def test_value_ignoring_risk_leaves_out_the_highest_and_trains_on_the_rest() -> None:
    labelled = torch.tensor([0.95, 0.9, 0.8, 0.6, 0.3], dtype=torch.float64)
    kept = POOL_ANSWERS[cvir_kept(POOL_ANSWERS, 0.2)]
    assert kept.tolist() == sorted(POOL_ANSWERS.tolist())[:8]
    assert naive_risk(labelled.logit(), kept.logit()).item() == pytest.approx(0.34678925, abs=1e-7)


def test_value_ignoring_risk_keeps_all_at_prior_zero_and_equal_scores_in_pool_order() -> None:
    assert cvir_kept(torch.zeros(4), 0.0).tolist() == [0, 1, 2, 3]
    assert cvir_kept(torch.zeros(4), 0.5).tolist() == [0, 1]
    with pytest.raises(ValueError, match="prior must be in"):
        cvir_kept(torch.zeros(4), 1.0)


@pytest.mark.parametrize("risk", [vpu_risk, lambda p, u: dist_pu_risk(p, u, 0.3)])
def test_the_other_risks_refuse_an_empty_group(risk: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match="P=3, U=0"):
        risk(torch.ones(3), torch.ones(0))
