"""Train and export models of one framework: `python -m tests.frameworks.exporting MODULE FOLDER NAME...`.

A process of its own for each framework: PaddlePaddle crashes where TensorFlow is loaded.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_engine.jsonform import from_json, to_json
from tests.frameworks.digits import Digits, Truth, coloured_digits, gray_digits

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One exported model on disk, with the truth about it."""

    file: Path
    truth: Truth
    data: Digits
    scores: NDArray[Any]  # the framework's own, of all unseen images


def export_all(module: str, names: tuple[str, ...], folder: Path) -> str:
    """Run the exporters of one module in a child; returns what it wrote to its error stream."""
    command = [sys.executable, "-m", "tests.frameworks.exporting", module, str(folder), *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    return done.stderr


def read(folder: Path, name: str) -> Export | None:
    """An export that the child has finished."""
    if not (folder / f"{name}.json").exists():
        return None
    truth = from_json(Truth, json.loads((folder / f"{name}.json").read_text()))
    scores = np.load(folder / f"{name}.npy")
    return Export(file=folder / f"{name}.onnx", truth=truth, data=data_of(truth), scores=scores)


def data_of(truth: Truth) -> Digits:
    """The images that a model was trained on."""
    return gray_digits() if truth.documented.channels == "GRAY" else coloured_digits()


def main(module: str, folder: Path, names: list[str]) -> None:
    """Write NAME.onnx, NAME.npy and, last, NAME.json of each export; a failed one leaves its traceback."""
    warnings.simplefilter("ignore")  # the frameworks' own deprecations
    exporters = importlib.import_module(f"tests.frameworks.{module}")
    for name in names:
        try:
            exported = getattr(exporters, name)()
            (folder / f"{name}.onnx").write_bytes(exported.file)
            np.save(folder / f"{name}.npy", exported.predict(data_of(exported.truth).unseen_images))
            (folder / f"{name}.json").write_text(json.dumps(to_json(exported.truth)))
        except Exception:  # noqa: BLE001 - the others go on; the test of this one shows it
            traceback.print_exc()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
