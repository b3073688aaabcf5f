"""Distillation losses: logits in, scalar out. p is the teacher's softmax at temperature T, q the student's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STANDARDISATION_EPSILON = 1e-7
MASKED_LOGIT = -1e9  # far below any logit: its softmax is exactly 0 and its product with a log stays 0
HINT_EPSILON = 1e-6
SMALLEST_PROBABILITY = 1e-12
CORRELATION_EPSILON = 1e-8  # added to the product of norms, as the authors' code does


def kd_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Hinton's loss for each image, T^2 KL(p || q).

    Source: Hinton et al. 2015, section 2; T^2 keeps the gradient's size as T changes.

    Args:
        student, teacher: logits, float [N, K].
        temperature: T > 0.

    Returns:
        [N], in nats.
    """
    _check(student, teacher, temperature)
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1) * temperature**2


def dkd_rows(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float, *, alpha: float = 1.0, beta: float = 8.0
) -> Tensor:
    """Decoupled distillation: KL of target against rest, and KL among the rest, weighted apart.

    Source: Zhao et al. 2022.

    Args:
        student, teacher: logits, float [N, K].
        target: class of each image, int64 [N]; the teacher's argmax where there is no label.

    Returns:
        T^2 (alpha TCKD + beta NCKD), [N].
    """
    _check(student, teacher, temperature)
    target_part, other_part = decoupled_kl(student, teacher, target, temperature)
    return (alpha * target_part + beta * other_part) * temperature**2


def decoupled_kl(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of each image, [N] each, without T^2; KL(p || q) = TCKD + (1 - p_target) NCKD."""
    chosen = F.one_hot(target, student.shape[1]).bool()
    binary_p, binary_q = (_log_binary(z / temperature, chosen) for z in (teacher, student))
    rest_p, rest_q = (
        F.log_softmax((z / temperature).masked_fill(chosen, MASKED_LOGIT), dim=1) for z in (teacher, student)
    )
    target_part = (binary_p.exp() * (binary_p - binary_q)).sum(dim=1)
    other_part = (rest_p.exp() * (rest_p - rest_q)).sum(dim=1)
    return target_part, other_part


def dist(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Correlation loss: T^2 (2 inter + 2 intra).

    Source: Huang et al. 2022 ("DIST"). It needs a batch of 32 or more to mean anything.
    """
    _check(student, teacher, temperature)
    inter, intra = correlation_distances(student, teacher, temperature)
    return (2.0 * inter + 2.0 * intra) * temperature**2


def correlation_distances(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """1 - mean Pearson correlation of p and q along rows (inter) and along columns (intra); intra of one row is 0."""
    p = F.softmax(teacher / temperature, dim=1)
    q = F.softmax(student / temperature, dim=1)
    inter = 1.0 - _pearson(p, q, dim=1).mean()
    if len(p) == 1:
        return inter, torch.zeros_like(inter)
    return inter, 1.0 - _pearson(p, q, dim=0).mean()


def standardised_rows(student: Tensor, teacher: Tensor, temperature: float = 2.0, *, ddof: int = 1) -> Tensor:
    """Hinton's loss of each image, [N], on logits that are standardised by row on both sides.

    Source: Sun et al. 2024. Its code divides by the unbiased deviation (ddof 1), its formula by the biased (0).
    """
    return kd_rows(_standardised(student, ddof), _standardised(teacher, ddof), temperature)


def hint_distance(projected: Tensor, features: Tensor) -> Tensor:
    """Mean squared distance of the student's projected features from the teacher's, float [N, W] both, in units of the
    teacher's own spread over the batch: 1 is what the mean feature would reach.

    Source: Romero et al. 2015 ("FitNets"), on pooled features.
    """
    if projected.shape != features.shape:
        raise ValueError(f"features must be of one shape, got {tuple(projected.shape)} and {tuple(features.shape)}")
    spread = (features - features.mean(dim=0)).square().mean()
    return (projected - features).square().mean() / (spread + HINT_EPSILON)


def confusion(free: Tensor, accuracy: float) -> Tensor:
    """DFND's noise adaptation, [K, K]: row k is what the teacher answers where k is right.

    Source: Chen et al. 2021 ("Learning Student Networks in the Wild").

    Args:
        free: learned, [K, K - 1]; a row's softmax shares out what `accuracy` leaves.
        accuracy: of the teacher, the whole diagonal.
    """
    classes = len(free)
    if free.shape != (classes, classes - 1) or not 0.0 <= accuracy <= 1.0:
        raise ValueError(f"free must be [K, K - 1] and accuracy a share, got {tuple(free.shape)} and {accuracy}")
    wrong = F.softmax(free, dim=1) * (1.0 - accuracy)
    matrix = torch.full((classes, classes), accuracy, dtype=free.dtype, device=free.device)
    off_diagonal = ~torch.eye(classes, dtype=torch.bool, device=free.device)
    return matrix.masked_scatter(off_diagonal, wrong)


def noisy_label_loss(student: Tensor, answers: Tensor, matrix: Tensor) -> Tensor:
    """Cross-entropy of the teacher's answers, int64 [N], under the student's classes sent through `confusion`."""
    answered = F.softmax(student, dim=1) @ matrix
    return F.nll_loss(answered.clamp_min(SMALLEST_PROBABILITY).log(), answers)


def _standardised(logits: Tensor, ddof: int) -> Tensor:
    deviation = logits.std(dim=1, keepdim=True, correction=ddof)
    return (logits - logits.mean(dim=1, keepdim=True)) / (deviation + STANDARDISATION_EPSILON)


def _log_binary(scaled: Tensor, chosen: Tensor) -> Tensor:
    """Log of [p_target, 1 - p_target], [N, 2], without the cancellation of 1 - p."""
    log_p = F.log_softmax(scaled, dim=1)
    log_target = (log_p * chosen).sum(dim=1)
    log_rest = log_p.masked_fill(chosen, MASKED_LOGIT).logsumexp(dim=1)
    return torch.stack([log_target, log_rest], dim=1)


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    a, b = a - a.mean(dim=dim, keepdim=True), b - b.mean(dim=dim, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (a * b).sum(dim=dim) / (norms + CORRELATION_EPSILON)


def _check(student: Tensor, teacher: Tensor, temperature: float) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(f"logits must be [N, K] on both sides, got {tuple(student.shape)} and {tuple(teacher.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
