from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pu_engine.training import distill_loss

TEACHER = torch.tensor([[4.0, 1.0, 0.0, -1.0], [0.0, 3.0, 2.5, -2.0]], dtype=torch.float64)
STUDENT = torch.tensor([[2.0, 1.0, 1.0, 0.0], [1.0, 1.0, 2.0, -1.0]], dtype=torch.float64)
TARGET = torch.tensor([0, 1])
THIRD_TEACHER = torch.tensor([[1.0, 0.0, -1.0, 3.0]], dtype=torch.float64)
THIRD_STUDENT = torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)


def close(value: Tensor, expected: float | list[float]) -> None:
    torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("temperature", "rows", "mean"),
    [(1.0, [0.39178277, 0.42203874], 0.40691075), (4.0, [0.88737423, 0.74381638], 0.81559530)],
)
def test_kd_has_the_golden_rows_and_mean(temperature: float, rows: list[float], mean: float) -> None:
    close(distill_loss.kd_rows(STUDENT, TEACHER, temperature), rows)
    close(distill_loss.kd_rows(STUDENT, TEACHER, temperature).mean(), mean)


def test_kd_is_torchs_batchmean_times_temperature_squared() -> None:
    theirs = F.kl_div(F.log_softmax(STUDENT / 4, 1), F.softmax(TEACHER / 4, 1), reduction="batchmean") * 16
    torch.testing.assert_close(distill_loss.kd_rows(STUDENT, TEACHER, 4.0).mean(), theirs)


def test_weighted_kd_has_the_published_value() -> None:
    weights = torch.tensor([0.9, 1.2], dtype=torch.float64)
    close((weights * distill_loss.kd_rows(STUDENT, TEACHER, 1.0)).sum() / 2, 0.42952549)


def test_decoupled_parts_have_the_golden_values() -> None:
    target_part, other_part = distill_loss.decoupled_kl(STUDENT, TEACHER, TARGET, 4.0)
    close(target_part, [0.05149343, 0.03558844])
    close(other_part, [0.00748862, 0.01754094])


def test_dkd_has_the_golden_value() -> None:
    close(distill_loss.dkd_rows(STUDENT, TEACHER, TARGET, 4.0).mean(), 2.29854646)


@given(seed=st.integers(0, 2**31), temperature=st.floats(0.5, 8.0))
@settings(max_examples=30, deadline=None)
def test_decoupled_parts_add_up_to_kl(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64, generator=generator) * 3
    target = torch.randint(0, 7, (5,), generator=generator)
    target_part, other_part = distill_loss.decoupled_kl(student, teacher, target, temperature)
    chosen = F.softmax(teacher / temperature, 1).gather(1, target[:, None])[:, 0]
    whole = distill_loss.kd_rows(student, teacher, temperature) / temperature**2
    torch.testing.assert_close(target_part + (1 - chosen) * other_part, whole)


def test_dkd_gradient_is_finite_where_the_teacher_is_certain() -> None:
    student = STUDENT.clone().requires_grad_()
    distill_loss.dkd_rows(student, TEACHER * 1000, TARGET, 1.0).sum().backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("temperature", "inter", "intra"), [(1.0, 0.29825131, 0.00005174), (4.0, 2.51282816, 0.00014264)]
)
def test_dist_has_the_golden_distances(temperature: float, inter: float, intra: float) -> None:
    got_inter, got_intra = distill_loss.correlation_distances(STUDENT, TEACHER, temperature)
    close(got_inter * temperature**2, inter)
    close(got_intra * temperature**2, intra)


def test_dist_has_the_golden_distances_of_three_rows() -> None:
    student, teacher = torch.cat([STUDENT, THIRD_STUDENT]), torch.cat([TEACHER, THIRD_TEACHER])
    inter, intra = distill_loss.correlation_distances(student, teacher, 1.0)
    close(inter, 0.20069411)
    close(intra, 0.06990036)
    close(distill_loss.dist(student, teacher), 2 * 0.20069411 + 2 * 0.06990036)


def test_dist_of_one_row_has_no_column_part() -> None:
    _, intra = distill_loss.correlation_distances(STUDENT[:1], TEACHER[:1], 1.0)
    assert intra == 0.0


@pytest.mark.parametrize(("ddof", "value"), [(0, 0.11042363), (1, 0.08301362)])
def test_standardised_rows_has_the_golden_value(ddof: int, value: float) -> None:
    close(distill_loss.standardised_rows(STUDENT, TEACHER, 2.0, ddof=ddof).mean(), value)


def test_standardised_rows_ignores_shift_and_scale() -> None:
    close(distill_loss.standardised_rows(TEACHER * 3 + 5, TEACHER), [0.0, 0.0])


def test_losses_of_equal_logits_are_zero() -> None:
    close(distill_loss.kd_rows(TEACHER, TEACHER, 4.0), [0.0, 0.0])
    close(distill_loss.dkd_rows(TEACHER, TEACHER, TARGET, 4.0), [0.0, 0.0])
    # The constant in the divisor shows where a column of p hardly varies.
    assert 0 <= distill_loss.dist(TEACHER, TEACHER) < 0.01


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(1, 4\)"):
        distill_loss.kd_rows(STUDENT, TEACHER[:1], 4.0)


def test_temperature_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        distill_loss.kd_rows(STUDENT, TEACHER, 0.0)


def test_hints_of_the_mean_feature_are_one_and_of_the_features_zero() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64)
    mean = features.mean(dim=0).expand(2, 2)
    assert distill_loss.hint_distance(mean, features).item() == pytest.approx(1.0, abs=1e-5)
    assert distill_loss.hint_distance(features, features).item() == 0.0


def test_hints_of_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(2, 3\)"):
        distill_loss.hint_distance(STUDENT, TEACHER[:, :3])


def test_an_unlearned_confusion_spreads_the_errors_evenly() -> None:
    matrix = distill_loss.confusion(torch.zeros(3, 2, dtype=torch.float64), 0.8)
    assert matrix.tolist() == [
        pytest.approx([0.8, 0.1, 0.1]), pytest.approx([0.1, 0.8, 0.1]), pytest.approx([0.1, 0.1, 0.8])
    ]  # fmt: skip


def test_confusion_keeps_each_rows_order_around_the_diagonal() -> None:
    free = torch.log(torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]], dtype=torch.float64))
    matrix = distill_loss.confusion(free, 0.6)
    assert matrix.tolist() == [
        pytest.approx([0.6, 0.1, 0.3]), pytest.approx([0.1, 0.6, 0.3]), pytest.approx([0.1, 0.3, 0.6])
    ]  # fmt: skip


def test_noisy_labels_of_an_exact_teacher_are_plain_cross_entropy() -> None:
    exact = distill_loss.confusion(torch.zeros(4, 3, dtype=torch.float64), 1.0)
    torch.testing.assert_close(distill_loss.noisy_label_loss(STUDENT, TARGET, exact), F.cross_entropy(STUDENT, TARGET))


def test_the_confusion_learns_which_answers_the_teacher_confuses() -> None:
    free = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    # The student is sure of class 0 where the teacher says 1.
    certain = torch.tensor([[9.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    loss = distill_loss.noisy_label_loss(certain, torch.tensor([1]), distill_loss.confusion(free, 0.7))
    loss.backward()  # type: ignore[no-untyped-call]
    assert free.grad is not None
    assert free.grad[0, 0] < 0 < free.grad[0, 1]
