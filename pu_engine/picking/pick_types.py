"""What is said of the picks as a whole: frozen, with a JSON form."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PickEstimate:
    """Expected share of positives among the picks, with what it is at both ends of the prior's interval; and the share
    of the pool's positives that were picked.
    """

    precision: float
    precision_low: float
    precision_high: float
    recall: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Pool images that are believed positive alike: `believed` is their mean probability, `read` the share that the
    labelled images' scores say, the prior times the share of these in the bin over the pool's share in it.
    """

    pool: int
    labelled: int
    believed: float
    read: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoorClass:
    """A class with labelled images of which the pool has fewer images than are wanted; `nearest` is the key of the
    image, of those that the teacher takes for another class, to which it gives this class the largest probability.
    """

    name: str
    available: int
    wanted: int
    nearest: str | None
    nearest_class: str | None
    nearest_probability: float | None
