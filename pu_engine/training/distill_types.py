"""What a user may say of the training: the parts of its loss, its budget, its draws and its views."""

from __future__ import annotations

from dataclasses import dataclass, field

EFFORT_STEPS = {"quick": 1500, "normal": 6000, "patient": 24_000}
DRAWS = ("uniform", "weighted", "balanced")
TARGETS = ("auto", "cached", "views", "live")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEFAULT_RADIUS = {"none": 0.0, "paper": 0.1, "two_sided": 0.1, "chi2": 0.05, "kl": 0.05}  # by rule of class weights


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillLoss:
    """What the loss of a batch is made of: each part's weight; 0 leaves it out."""

    kl: float = 1.0  # Hinton's, at `temperature`
    dkd: float = 0.0  # decoupled: target against the rest, and among the rest
    dist: float = 0.0  # correlation by rows and by columns; wants batches of 32 and more
    standardised: float = 0.0  # Hinton's on logits standardised by row
    hints: float = 0.0  # squared distance of projected features from the teacher's last tap
    noisy_labels: float = 0.0  # DFND's: the teacher's answer through a learned confusion
    labels: float = 0.1  # cross-entropy on the labelled images
    temperature: float = 4.0  # of kl and dkd


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillationOptions:
    effort: str = "quick"  # quick | normal | patient: the steps where none are named
    steps: int | None = None
    minutes: float | None = None  # as many steps as fit, by a measured step; wins over `effort`
    batch_size: int = 128
    learning_rate: float = 0.1
    loss: DistillLoss = field(default_factory=DistillLoss)
    labelled_share: float = 0.25
    draws: str = "weighted"  # uniform | weighted | balanced: how picked images are drawn
    targets: str = "auto"  # auto | cached | views | live
    views: int = 8  # of each image, where the targets are a bank of views
    mixup: float = 0.0  # alpha of Beta(alpha, alpha); 0: off
    cutmix: float = 0.0
    class_weights: str = "none"  # none | paper | two_sided | chi2 | kl
    radius: float | None = None  # None: 0.05, for paper and two_sided 0.1
    weight_decay: float = 5e-4
    warmup_share: float = 0.05
    clip_norm: float = 0.0  # largest norm of a step's gradient; 0: unbounded
    average_decay: float = 0.0  # of the running mean of the weights, which is then the student; 0: the last weights
    precision: str = "auto"  # auto | fp32 | bf16 | fp16; auto: fp32 on a CPU
    compiled: bool = False  # by torch.compile
