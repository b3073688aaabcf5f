"""What a plan says: frozen, with a JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pu_engine.jsonform import MEASURED
from pu_engine.picking.pick_types import PickEstimate


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
class PickForecast:
    """What selection would find, from a sample; counts are scaled to the pool. Fields as those of `Selection`."""

    sample: int  # pool images that were scored for it
    labelled: int  # labelled images that were
    picked: int
    score: str
    why: str
    prior: float | None
    prior_low: float | None
    prior_high: float | None
    prior_bound: float | None
    separated: float | None
    expected: PickEstimate | None
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    class_available: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Also written as `plan.json`."""

    steps: int = field(metadata=MEASURED)
    budget: str = field(metadata=MEASURED)  # where the number of steps comes from
    targets: str  # cached | views | live, and why
    outlook: tuple[Outlook, ...] = field(metadata=MEASURED)
    picked: int = field(metadata=MEASURED)
    pool_images: int
    selection: PickForecast = field(metadata=MEASURED)  # of as many images as the teacher's speed allows
    student: str
    parameters: int
    macs: int
    stages: tuple[StageEstimate, ...] = field(metadata=MEASURED)
    seconds: float = field(metadata=MEASURED)
    artifacts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEstimates:
    """What a plan foretold of the compression that is made from it; stages by name."""

    seconds: Mapping[str, float]
    memory_bytes: Mapping[str, int]
    steps: int
    picked: int
    pool_images: int
    score: str
    prior: float | None
    precision: float | None
    class_counts: tuple[int, ...]
