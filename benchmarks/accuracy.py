"""A model's answers on images, by onnxruntime alone, as a device would run it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_engine.imaging.images import resize
from pu_engine.imaging.preprocessing import model_input
from pu_engine.jsonform import from_json
from pu_engine.runtime.sessions import open_session
from pu_engine.types import Preprocessing

BATCH = 250
THREADS = 2


def answers(model: Path, images: NDArray[np.uint8], preprocessing: dict[str, Any], output: str) -> NDArray[np.int64]:
    """The output index of the largest score for each image.

    Args:
        images: [N, H, W, C] uint8.
        preprocessing: of the model, as report.json has it.
        output: name of the score tensor.

    Returns:
        [N].
    """
    how = from_json(Preprocessing, preprocessing)
    session = open_session(model, threads=THREADS)
    sized = np.stack([resize(image, how.height, how.width) for image in images])
    name = session.get_inputs()[0].name
    scores = [
        session.run([output], {name: model_input(sized[start : start + BATCH], how)})[0]
        for start in range(0, len(sized), BATCH)
    ]
    found: NDArray[np.int64] = np.concatenate(scores).argmax(axis=1)
    return found
