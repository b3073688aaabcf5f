"""What the int8 files of one student are made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.calibration import Observed
from pu_engine.progress import Progress
from pu_engine.types import ExportInputs, StudentSpec
from pu_engine.variants.sample_images import Sample


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Int8Task:
    """A student's fp32 graph and the images to quantise it by; `calibration` and `validation` are disjoint samples."""

    inputs: ExportInputs
    spec: StudentSpec
    base: Any  # the fp32 graph: float32 in, logits out, batch free
    observed: Observed  # of `base`, on the calibration images
    calibration: Sample
    validation: Sample
    scratch: Path
    progress: Progress
