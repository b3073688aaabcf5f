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
