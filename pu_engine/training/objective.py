"""The loss of a batch: the parts that the options weigh, the classes weighed by the rule that they name."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pu_engine.training import distill_loss
from pu_engine.training.batches import Batch
from pu_engine.training.class_weighting import ClassWeighting, running_class_loss
from pu_engine.training.distill_types import DistillLoss
from pu_engine.training.processes import ALONE, Processes

BY_ROW = ("kl", "dkd", "standardised")
OF_BATCH = ("dist", "hints", "noisy_labels", "labels")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Losses:
    """One batch's loss, its parts before their weights, and the classes' running loss after it, float64 [K].

    All of it stays on the device: to read a number there makes the host wait for every kernel before it.
    """

    total: Tensor
    parts: dict[str, Tensor]  # detached
    class_loss: Tensor
    class_weights: Tensor  # float32 [K]: of the set's members the one of larger loss


class Objective(nn.Module):
    """The parts of a loss together. Its parameters are what DFND's confusion and the hints' projection learn.

    Args:
        teacher_accuracy: on labelled images; the diagonal of the confusion.
        widths: of the student's features and of the teacher's last tap, where there are hints.
        processes: that share each batch. The mean of their losses is that of the whole batch, but for `dist` and the
            spread of hints, which each takes of its own rows.
    """

    fixed_weights: Tensor

    def __init__(
        self,
        loss: DistillLoss,
        weighting: ClassWeighting,
        *,
        teacher_accuracy: float,
        widths: tuple[int, int] | None,
        processes: Processes = ALONE,
    ) -> None:
        super().__init__()
        self.processes = processes
        self.loss, self.weighting, self.teacher_accuracy = loss, weighting, teacher_accuracy
        classes = len(weighting.shares)
        self.confusion = nn.Parameter(torch.zeros(classes, classes - 1)) if loss.noisy_labels else None
        self.projection = nn.Linear(*widths) if loss.hints and widths else None
        self.register_buffer("fixed_weights", weighting.static, persistent=False)

    def forward(
        self, logits: Tensor, features: Tensor | None, batch: Batch, class_loss: Tensor, *, first: bool
    ) -> Losses:
        """The loss of a batch.

        Args:
            logits: of the student, float32 [B, K].
            features: of the student, float32 [B, W], where there are hints.
            class_loss: running loss of each class, float64 [K], on the CPU; it moves where the weights follow it.
            first: whether `class_loss` means nothing yet.
        """
        answers = batch.targets.argmax(dim=1)
        parts = self._row_parts(logits, batch, answers)
        rows = logits.new_zeros(len(logits))
        for name, values in parts.items():
            rows = rows + getattr(self.loss, name) * values
        members = self.fixed_weights
        if self.weighting.adaptive:
            # The worst case is found on the host.
            class_loss = running_class_loss(
                class_loss, rows.detach().cpu(), answers.cpu(), first=first, processes=self.processes
            )
            members = self.weighting.class_weights(class_loss).to(rows.device)
        by_member = (members[:, answers] * rows).mean(dim=1) * batch.rows_weight
        member = self._larger(by_member)
        total = torch.where(torch.arange(len(members), device=member.device) == member, by_member, 0.0).sum()

        whole = self._batch_parts(logits, features, batch, answers)
        for name, value in whole.items():
            total = total + getattr(self.loss, name) * value
        means = {name: values.mean() * batch.rows_weight for name, values in parts.items()} | whole
        return Losses(
            total=total, parts={name: value.detach() for name, value in means.items()}, class_loss=class_loss,
            class_weights=members.index_select(0, member[None])[0],
        )  # fmt: skip

    def _larger(self, by_member: Tensor) -> Tensor:
        """Of the class weights' set the member of larger loss over the whole batch."""
        losses = by_member.detach().clone()
        return (self.processes.total(losses) if len(losses) > 1 else losses).argmax()

    def _row_parts(self, logits: Tensor, batch: Batch, answers: Tensor) -> dict[str, Tensor]:
        loss, targets = self.loss, batch.targets
        parts: dict[str, Tensor] = {}
        if loss.kl:
            parts["kl"] = distill_loss.kd_rows(logits, targets, loss.temperature)
        if loss.dkd:
            right = (
                answers if batch.partner_labels is not None else torch.cat([batch.labels, answers[len(batch.labels) :]])
            )
            parts["dkd"] = distill_loss.dkd_rows(logits, targets, right, loss.temperature)
        if loss.standardised:
            parts["standardised"] = distill_loss.standardised_rows(logits, targets)
        return parts

    def _batch_parts(self, logits: Tensor, features: Tensor | None, batch: Batch, answers: Tensor) -> dict[str, Tensor]:
        loss = self.loss
        parts: dict[str, Tensor] = {}
        if loss.dist:
            parts["dist"] = distill_loss.dist(logits, batch.targets)
        if self.projection is not None and features is not None and batch.features is not None:
            parts["hints"] = distill_loss.hint_distance(self.projection(features), batch.features)
        if self.confusion is not None:
            matrix = distill_loss.confusion(self.confusion, self.teacher_accuracy)
            parts["noisy_labels"] = distill_loss.noisy_label_loss(logits, answers, matrix)
        if loss.labels and len(batch.labels):
            parts["labels"] = label_loss(logits[: len(batch.labels)], batch)
        elif loss.labels and not batch.labels_weight:
            parts["labels"] = 0.0 * logits.sum()  # other processes have the batch's labelled images
        weight = {"labels": batch.labels_weight}
        return {name: value * weight.get(name, batch.rows_weight) for name, value in parts.items()}


def label_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the labelled images, and of what is mixed into them in its share."""
    own = F.cross_entropy(logits, batch.labels)
    if batch.partner_labels is None:
        return own
    return batch.share * own + (1.0 - batch.share) * F.cross_entropy(logits, batch.partner_labels)
