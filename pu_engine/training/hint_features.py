"""The teacher's features of the training images, for hints: the last tap of the scoring, as it was computed then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.scores.score_files import CLEAN_VIEW, open_score_files
from pu_engine.types import DistillationInputs

Features = NDArray[np.float16]


def hint_features(inputs: DistillationInputs) -> tuple[Features, Features]:
    """Features [n, W] of the labelled and of the picked images, in the order of the training set.

    Raises:
        EngineError: REQUEST_INVALID where the teacher has no taps, or the scoring was not handed on.
    """
    if inputs.scoring is None or inputs.selection is None:
        raise _no_features("the scoring is not at hand")
    files = open_score_files(Path(inputs.intake.path), Path(inputs.scoring.path))
    if not files.scores.taps:
        raise _no_features("the teacher has no taps")
    width = files.last_tap_width
    picked = pq.read_table(Path(inputs.selection.path) / "selection.parquet", columns=["picked"])["picked"].to_numpy()
    found, start = [np.zeros((0, width), np.float16)], 0
    for chunk in files.pool_features(CLEAN_VIEW):
        found.append(chunk[picked[start : start + len(chunk)], -width:].astype(np.float16))
        start += len(chunk)
    return files.positive_features(CLEAN_VIEW)[:, -width:].astype(np.float16), np.concatenate(found)


def _no_features(why: str) -> EngineError:
    return EngineError(
        "REQUEST_INVALID",
        f"distillation.loss.hints compares features of student and teacher, but {why}.",
        "Leave out the part hints of the loss, or name the teacher's features by a tap.",
    )
