"""What a plan says: frozen, with a JSON form."""

from __future__ import annotations

from dataclasses import dataclass, field

from pu_engine.jsonform import MEASURED


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    stage: str
    seconds: float
    memory_bytes: int
    how: str  # what the figure rests on


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Another training budget: what it takes, and how much better or worse than the planned one it should end."""

    effort: str
    steps: int
    seconds: float
    points: float  # of accuracy, from recorded runs; a rule of thumb


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Also written as `plan.json`."""

    steps: int = field(metadata=MEASURED)
    budget: str = field(metadata=MEASURED)  # where the number of steps comes from
    targets: str  # cached | views | live, and why
    outlook: tuple[Outlook, ...] = field(metadata=MEASURED)
    picked: int
    pool_images: int
    student: str
    parameters: int
    macs: int
    stages: tuple[StageEstimate, ...] = field(metadata=MEASURED)
    seconds: float = field(metadata=MEASURED)
    artifacts: tuple[str, ...] = ()
