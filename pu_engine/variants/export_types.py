"""Parts of what stage export exchanges."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """A file that another one can't be loaded without."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotMade:
    """A file, or a runtime's files, that were asked for and could not be made."""

    name: str  # of the variant or the runtime
    reason: str  # with what to do about it
