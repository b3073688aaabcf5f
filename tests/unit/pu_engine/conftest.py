"""A small, learnable distillation job: three classes of colour at 16 pixels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from pu_engine.distillation import run as run_distillation
from pu_engine.export import run as run_export
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest
from pu_engine.training.distill_types import DistillationOptions
from pu_engine.types import (
    DistillationInputs,
    ExportInputs,
    ExportOptions,
    Folder,
    Preprocessing,
    StudentOptions,
    Teacher,
    TrainingSet,
)
from tests.unit.conftest import FACTS

SIZE, CLASSES = 16, 3
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
FAST = DistillationOptions(steps=40, batch_size=16, learning_rate=0.05)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Torch's threads wait for each other by spinning: on shared cores two are slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class SmallJob:
    """Finished intake and gathering folders, and the inputs of a distillation over them."""

    intake: Folder
    gathering: Folder

    def inputs(
        self, options: DistillationOptions = FAST, student: str = "cifar_resnet8", **limits: Any
    ) -> DistillationInputs:
        """The inputs of a distillation; `limits` are those of the student's options."""
        return DistillationInputs(
            intake=self.intake,
            gathering=self.gathering,
            student=StudentOptions(name=student, **limits),
            distillation=options,
            seed=3,
        )


def finish(folder: Path, result: Any) -> Folder:
    """Make a folder that of a finished stage."""
    manifest = build_manifest(folder, result, {})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Folder(path=str(folder), sha256=manifest["digest"])


def colour_teacher() -> onnx.ModelProto:
    """Mean colour to three logits, batch free: [N, 3, 16, 16] -> [N, 3]."""
    make = onnx.helper
    weight = onnx.numpy_helper.from_array((np.eye(3) * 12).astype(np.float32), "weight")
    graph = make.make_graph(
        [
            make.make_node("GlobalAveragePool", ["input"], ["pooled"]),
            make.make_node("Flatten", ["pooled"], ["flat"]),
            make.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "teacher",
        [make.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [make.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", CLASSES])],
        [weight],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)


def teacher_result(**changes: Any) -> Teacher:
    """What intake says of the colour teacher."""
    values: dict[str, Any] = {
        "preprocessing": Preprocessing(
            layout="NCHW",
            channels="RGB",
            scale=1 / 255,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            dtype="float32",
            height=SIZE,
            width=SIZE,
        ),
        "output": "logits",
        "batch": None,
        "classes": CLASSES,
        "class_order": {"blue": 2, "green": 1, "red": 0},
        "class_names": ("red", "green", "blue"),
        "taps": (),
        "accuracy": 1.0,
        "accuracy_low": 0.9,
        "accuracy_high": 1.0,
        "images": 40,
        "hypotheses": (),
        "parameters": 9,
        "macs": 9,
        "opset": 17,
        "producer": "",
        "facts": FACTS,
        "teacher_sha256": "0" * 64,
        "teacher_bytes": 1,
        "display_name": "teacher.onnx",
    }
    return Teacher(**(values | changes))


def colour_part(
    n: int, seed: int, channels: int = 3
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
    """Noisy images of one colour each, the teacher's logits of image and mirror, and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n, dtype=np.int64) % CLASSES
    images = np.clip(COLOURS[labels][:, None, None, :] + rng.normal(0, 30, (n, SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
    logits = images.mean(axis=(1, 2)).astype(np.float32) / 255 * 12
    return images[..., :channels], np.stack([logits, logits], axis=1), labels


def make_small_job(folder: Path, picked: int, channels: int) -> SmallJob:
    """Write the job's folders."""
    intake, gathering = folder / "intake", folder / "gathering"
    intake.mkdir()
    gathering.mkdir()
    (intake / "canonical.onnx").write_bytes(colour_teacher().SerializeToString())
    counts = {"labelled": 30, "picked": picked, "held_out": 12, "parity": 20}
    for seed, (part, n) in enumerate(counts.items()):
        images, targets, labels = colour_part(n, seed, channels)
        np.save(gathering / f"{part}.images.npy", images)
        np.save(gathering / f"{part}.targets.npy", targets)
        if part in ("labelled", "held_out"):
            np.save(gathering / f"{part}.labels.npy", labels)
    arrays = TrainingSet(size=SIZE, fit="stretch", channels=channels, classes=CLASSES, **counts, parity_unpicked=20)
    return SmallJob(intake=finish(intake, teacher_result()), gathering=finish(gathering, arrays))


@pytest.fixture
def small_job(tmp_path: Path) -> Callable[..., SmallJob]:
    """Build the job's folders; a count of picked images and of channels can be given."""
    return lambda picked=60, channels=3: make_small_job(tmp_path, picked, channels)


@dataclass(frozen=True)
class ExportedJob:
    """A small job up to its export for the CPU, all folders finished."""

    small: SmallJob
    distillation: Folder
    export: Folder


@pytest.fixture(scope="session")
def exported_job(tmp_path_factory: pytest.TempPathFactory) -> ExportedJob:
    """One trained and exported student for all tests; nobody may change its files."""
    folder = tmp_path_factory.mktemp("exported")
    small = make_small_job(folder, 60, 3)
    trained, exported = folder / "distillation", folder / "export"
    trained.mkdir()
    exported.mkdir()
    distillation = finish(trained, run_distillation(small.inputs(), trained, SilentProgress()))
    inputs = ExportInputs(
        distillation=distillation, gathering=small.gathering, export=ExportOptions(targets=("cpu",), max_batch=16)
    )
    return ExportedJob(
        small=small, distillation=distillation, export=finish(exported, run_export(inputs, exported, SilentProgress()))
    )
