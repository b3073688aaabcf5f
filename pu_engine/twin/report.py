"""What intake says of the teacher's torch twin."""

from __future__ import annotations

from dataclasses import dataclass, field

from pu_engine.jsonform import MEASURED


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinReport:
    """Whether the teacher also exists in torch, and how near that comes to onnxruntime on the labelled images."""

    available: bool
    reason: str = ""  # why there is none; names the node where one is to blame
    parameters: int = 0  # numbers that training may change
    images: int = 0  # on which it was compared
    quantised: bool = False  # rounds as onnxruntime does, but not in all places: judged by its predictions
    agreement: float | None = field(default=None, metadata=MEASURED)  # share of equal argmax
    max_error: float | None = field(default=None, metadata=MEASURED)  # relative to the largest logit
