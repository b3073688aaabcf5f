"""What frameworks export is taken in as it was meant: each model is trained and exported on the spot."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from pu_engine import intake
from pu_engine.imaging.preprocessing import model_input
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256
from pu_engine.teacher import conventions
from pu_engine.types import File, IntakeInputs, LabelledFile, LabelledImages, Preprocessing, Teacher
from tests.conftest import png
from tests.frameworks.conftest import Record
from tests.frameworks.digits import CLASSES, Digits, Truth
from tests.frameworks.exporting import Export, export_all, read

pytestmark = pytest.mark.frameworks

PER_CLASS = 20
SAME_PREDICTIONS = 0.97
TIED_PREDICTIONS = 0.9  # where the images can't tell, and another convention that intake names does better
EXPORTS = {
    "torch_models": (
        "dynamo_residual",
        "dynamo_bgr_softmax",
        "dynamo_uint8_nhwc",
        "dynamo_transformer",
        "script_gray_log_softmax",
        "script_fixed_batch",
        "script_transformer",
    ),
    "converted_models": (
        "static_qdq_u8",
        "static_qdq_s8",
        "static_qoperator",
        "dynamic_int8",
        "float16_inside",
        "float16_throughout",
    ),
    "keras_models": (
        "keras_softmax",
        "keras_rescaling",
        "tf2onnx_symmetric",
        "tf2onnx_channels_first",
        "tf2onnx_gray",
        "tf2onnx_uint8",
    ),
    "jax_models": ("flax_nhwc", "flax_nchw_softmax"),
    "table_models": (
        "scikit_mlp",
        "scikit_mlp_zipmap",
        "scikit_forest",
        "scikit_forest_zipmap",
        "scikit_pipeline",
        "scikit_pipeline_columns",
        "lightgbm_trees",
        "xgboost_trees",
    ),
    "paddle_models": ("paddle_bgr",),
}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Export]:
    """An export by module and name; the first of a module runs all of its exporters."""
    folder = tmp_path_factory.mktemp("exports")

    @cache
    def complaints(module: str) -> str:
        return export_all(module, EXPORTS[module], folder)

    def get(module: str, name: str) -> Export:
        text = complaints(module)
        export = read(folder, name)
        if export is None:
            pytest.fail(f"{name} was not exported: {text[-3000:]}")
        return export

    return get


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in EXPORTS.items() for name in names])
def test_export_is_taken_in_as_it_was_meant(
    module: str, name: str, exported: Callable[[str, str], Export], tmp_path: Path, record: Record
) -> None:
    export = exported(module, name)
    truth, data = export.truth, export.data
    chosen = labelled_rows(data)
    teacher, out = take_in(export, chosen, tmp_path)
    rest = np.setdiff1d(np.arange(len(data.unseen_labels)), chosen)
    images, scores = data.unseen_images[rest], export.scores[rest]
    predicted = scores.argmax(1)

    def logits(preprocessing: Preprocessing, model: str = "canonical.onnx") -> NDArray[np.float64]:
        return run(out / model, model_input(images, preprocessing), teacher.batch)

    def agreement(preprocessing: Preprocessing) -> float:
        return float((logits(preprocessing).argmax(1) == predicted).mean())

    error = relative_error(as_exported(logits(truth.documented), truth), scores)
    same = agreement(teacher.preprocessing)
    tied = max((agreement(h.preprocessing) for h in teacher.hypotheses if h.tied), default=0.0)
    accuracy = float((export.scores[chosen].argmax(1) == data.unseen_labels[chosen]).mean())
    record(row(name, truth, teacher, tied=tied, same=same, accuracy=accuracy, error=error))

    for what in ("layout", "channels", "dtype", "height", "width"):
        assert getattr(teacher.preprocessing, what) == getattr(truth.documented, what), what
    assert (teacher.output, teacher.batch, teacher.classes) == (truth.output, truth.batch, CLASSES)
    assert teacher.class_order == {str(digit): digit for digit in range(CLASSES)}
    assert error <= truth.error
    assert max(same, tied) >= SAME_PREDICTIONS
    assert same >= TIED_PREDICTIONS
    assert teacher.accuracy_low <= accuracy <= teacher.accuracy_high
    assert len(teacher.taps) >= truth.taps
    found = logits(teacher.preprocessing)
    assert relative_error(logits(teacher.preprocessing, "tapped.onnx"), found) <= max(truth.error, 1e-5)


def labelled_rows(data: Digits) -> NDArray[np.int64]:
    """The first unseen images of each class."""
    return np.sort(np.concatenate([np.flatnonzero(data.unseen_labels == c)[:PER_CLASS] for c in range(CLASSES)]))


def take_in(export: Export, chosen: NDArray[np.int64], folder: Path) -> tuple[Teacher, Path]:
    """Intake of the file with labelled images in folders named by digit."""
    data, files = export.data, []
    for place in chosen:
        path = folder / f"{place}.png"
        pixels = data.unseen_images[place]
        path.write_bytes(png(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
        files.append(LabelledFile(label=str(data.unseen_labels[place]), image=file_of(path)))
    out = folder / "out"
    out.mkdir()
    inputs = IntakeInputs(teacher=file_of(export.file), images=LabelledImages(files=tuple(files)))
    return intake.run(inputs, out, SilentProgress()), out


def file_of(path: Path) -> File:
    return File(path=str(path), sha256=file_sha256(path))


def run(path: Path, values: NDArray[Any], batch: int | None) -> NDArray[np.float64]:
    """Logits of the model's rows; a fixed batch is filled with copies of the last row."""
    session = ort.InferenceSession(str(path))
    step = batch or 64
    parts = []
    for start in range(0, len(values), step):
        rows = values[start : start + step]
        padded = np.concatenate([rows, rows[-1:].repeat((batch or 0) - len(rows), 0)]) if batch else rows
        parts.append(session.run(["logits"], {"input": padded})[0][: len(rows)])
    return np.concatenate(parts).astype(np.float64)


def as_exported(logits: NDArray[np.float64], truth: Truth) -> NDArray[np.float64]:
    """The file's own kind of scores."""
    if truth.output == "logits":
        return logits
    if truth.normaliser == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    shifted = logits - logits.max(axis=1, keepdims=True)
    logarithms: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logarithms if truth.output == "log_probabilities" else np.exp(logarithms)


def relative_error(ours: NDArray[np.float64], theirs: NDArray[Any]) -> float:
    """Largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def row(name: str, truth: Truth, teacher: Teacher, *, tied: float, same: float, accuracy: float, error: float) -> Any:
    """What the table shows of an export."""
    as_trained, as_found = (
        f"{p.layout} {p.channels} {p.dtype}, {conventions.name(p)}" for p in (truth.documented, teacher.preprocessing)
    )
    return (
        name,
        as_trained,
        "the same" if as_found == as_trained else as_found,
        f"{same:.1%}" + (f" ({tied:.1%})" if tied > same else ""),
        f"{accuracy:.3f}",
        f"{teacher.accuracy_low:.3f} to {teacher.accuracy_high:.3f}",
        str(teacher.batch or "free"),
        str(len(teacher.taps)),
        f"{error:.0e}",
    )
