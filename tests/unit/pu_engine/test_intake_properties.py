"""Whatever a small network's shape and convention: intake finds the convention, and the taps are the network's own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from hypothesis import Phase, assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pu_engine import intake
from pu_engine.imaging.preprocessing import model_input
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256
from pu_engine.types import File, IntakeInputs, LabelledFile, LabelledImages, Teacher
from tests.conftest import png
from tests.unit.pu_engine.generated_teacher import NAMES, SCALINGS, Block, Design, build, images_of, rows_of, run

PER_CLASS, UNSEEN = 15, 120  # the latter divides by every batch below
SAME_PREDICTIONS = 0.97
TIED_PREDICTIONS = 0.93  # where intake says that the images can't tell the documented convention from the found one
KINDS = {"": "logits", "Softmax": "probabilities", "Sigmoid": "probabilities", "LogSoftmax": "log_probabilities"}
AXES = {"NCHW": (2, 3), "NHWC": (1, 2), "vector": ()}
# onnxruntime computes float16 in float32 and rounds where an operator or an output asks for it.
ERRORS = {"float32": 1e-5, "uint8": 1e-5, "float16": 1e-2}

blocks = st.builds(
    Block,
    width=st.sampled_from([12, 16, 24]),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    padded=st.booleans(),
    residual=st.booleans(),
    pool=st.sampled_from(["", "MaxPool", "AveragePool"]),
)
designs = st.builds(
    Design,
    blocks=st.lists(blocks, min_size=1, max_size=3).map(tuple),
    graph=st.sampled_from(["NCHW", "NHWC", "NHWC body"]),
    channels=st.sampled_from(["RGB", "BGR"]),
    scaling=st.sampled_from(list(SCALINGS)),
    dtype=st.sampled_from(["float32", "float32", "float16", "uint8"]),
    tail=st.sampled_from(["", "Softmax", "LogSoftmax", "Sigmoid"]),
    batch=st.sampled_from([None, None, 1, 4]),
    seed=st.integers(0, 2**16),
)

# Taps move the logits of this one by 2.4e-3 of the largest.
SENSITIVE_HALF = Design(
    blocks=(
        Block(width=16, kernel=5, stride=1, padded=True, residual=True, pool=""),
        Block(width=16, kernel=1, stride=1, padded=True, residual=False, pool="AveragePool"),
        Block(width=12, kernel=5, stride=1, padded=True, residual=True, pool="AveragePool"),
    ),
    graph="NHWC",
    channels="BGR",
    scaling="0..1",
    dtype="float16",
    tail="",
    batch=4,
    seed=13420,
)


@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(design=designs)
@example(design=SENSITIVE_HALF)
def test_convention_is_found_and_taps_are_the_teachers_own(design: Design) -> None:
    file = build(design)
    generator = np.random.default_rng(design.seed + 1)
    labels = np.arange(UNSEEN) % len(NAMES)
    images = images_of(labels, generator)
    plain = onnx.ModelProto.FromString(file)
    scores = run(plain, rows_of(images, design), design.batch, ["scores"])[0].astype(np.float64)
    assume((scores.argmax(axis=1) == labels).mean() >= 0.9)  # of few random features, some tell little

    with tempfile.TemporaryDirectory() as folder:
        teacher = take_in(Path(folder), file, generator)
        tapped = onnx.load(Path(folder) / "out" / "tapped.onnx")

    assert (teacher.preprocessing.layout, teacher.preprocessing.dtype) == (design.layout, design.dtype)
    assert teacher.preprocessing.channels == design.channels
    assert (teacher.output, teacher.batch) == (KINDS[design.tail], None)
    names = ["logits", *(tap.name for tap in teacher.taps), *(tap.spread for tap in teacher.taps if tap.spread)]
    found = run(tapped, model_input(images, teacher.preprocessing), None, ["logits"])[0]
    tied = any(h.tied and h.name == f"{design.channels} {design.scaling}" for h in teacher.hypotheses)
    assert (found.argmax(axis=1) == scores.argmax(axis=1)).mean() >= (TIED_PREDICTIONS if tied else SAME_PREDICTIONS)
    logits, *pooled = run(tapped, rows_of(images, design), None, names)
    assert_close(logits, scores, ERRORS[design.dtype])
    means, spreads = pooled[: len(teacher.taps)], iter(pooled[len(teacher.taps) :])
    for tap, value in zip(teacher.taps, means, strict=True):
        source, _, kind = tap.source.rpartition(":")
        own = run(plain, rows_of(images, design), design.batch, [source])[0].astype(np.float32)
        assert_close(value, own.mean(axis=AXES[kind]), ERRORS[design.dtype])
        assert bool(tap.spread) == bool(AXES[kind])
        if tap.spread:
            assert_close(next(spreads), own.std(axis=AXES[kind]), ERRORS[design.dtype])


def take_in(folder: Path, file: bytes, generator: np.random.Generator) -> Teacher:
    """Intake with a few labelled images of each class."""
    (folder / "out").mkdir()
    (folder / "teacher.onnx").write_bytes(file)
    labels = np.arange(PER_CLASS * len(NAMES)) % len(NAMES)
    files = []
    for index, image in enumerate(images_of(labels, generator)):
        path = folder / f"{index}.png"
        path.write_bytes(png(image))
        files.append(LabelledFile(label=NAMES[labels[index]], image=file_of(path)))
    inputs = IntakeInputs(teacher=file_of(folder / "teacher.onnx"), images=LabelledImages(files=tuple(files)))
    return intake.run(inputs, folder / "out", SilentProgress())


def file_of(path: Path) -> File:
    return File(path=str(path), sha256=file_sha256(path))


def assert_close(ours: NDArray[Any], theirs: NDArray[Any], error: float) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=error * float(np.abs(theirs).max()))
