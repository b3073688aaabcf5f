"""What stage inspection exchanges."""

from __future__ import annotations

from dataclasses import dataclass

from pu_engine.types import Folder, LabelledImages


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionInputs:
    """Write what intake found as `inspection.json`, by the stable keys of `punnet inspect --json`, and as a page."""

    intake: Folder
    images: LabelledImages
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    artifacts: tuple[str, ...]
