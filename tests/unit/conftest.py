"""A tiny pool, tar and intake folder, written on the spot."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from pu_engine.jsonform import to_json
from pu_engine.pools.pool_types import IngestInputs
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest, file_sha256
from pu_engine.teacher.fact_types import Latency, ParserCheck, TeacherFacts
from pu_engine.types import File, Folder, LabelledEntry, Preprocessing, Tap, Teacher

TEACHER_SIDE = 8
TEACHER_CLASSES = 3
Pack = Callable[[Path, Mapping[str, bytes]], File]
MakePool = Callable[..., Folder]
MakeIntake = Callable[..., Folder]
MakeJpeg = Callable[..., bytes]

# What a teacher costs matters to no stage but those that print it.
FACTS = TeacherFacts(
    ir_version=8,
    opsets={"ai.onnx": 17},
    operators={"Conv": 1, "Gemm": 1},
    activation_bytes=4096,
    tensorrt=ParserCheck(parser="TensorRT-RTX 1.7", refused=(), refused_nodes=0, unchecked=""),
    latencies=(Latency(subject="teacher", batch=1, threads=1, p50_ms=0.5, p90_ms=0.6, runs=50),),
)


@pytest.fixture(scope="session")
def make_jpeg() -> MakeJpeg:
    """JPEG bytes of blocks of coloured noise, by seed."""
    import simplejpeg

    def make(seed: int, *, height: int = 12, width: int = 10, quality: int = 75, chroma: str = "420") -> bytes:
        generator = np.random.default_rng(seed)
        coarse = generator.integers(0, 256, (height // 2, width // 2, 3), np.uint8)
        pixels = np.ascontiguousarray(coarse.repeat(2, 0).repeat(2, 1))
        data: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling=chroma)
        return data

    return make


@pytest.fixture(scope="session")
def pack() -> Pack:
    """Write a plain tar of named members."""

    def write(path: Path, members: Mapping[str, bytes]) -> File:
        with tarfile.open(path, "w") as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return File(path=str(path), sha256=file_sha256(path))

    return write


@pytest.fixture(scope="session")
def make_pool(pack: Pack) -> MakePool:
    """Ingest named images into a pool below `folder`."""
    from pu_engine import ingest
    from pu_engine.pools.pool import pool_folder

    def make(folder: Path, members: Mapping[str, bytes], shard_images: int = 5) -> Folder:
        tar = pack(folder / "upload.tar", members)
        out = folder / "pool"
        out.mkdir()
        ingest.run(IngestInputs(name="tiny", tars=(tar,), shard_images=shard_images), out, SilentProgress())
        return pool_folder(out)

    return make


@pytest.fixture(scope="session")
def make_intake() -> MakeIntake:
    """A finished intake folder: a teacher of one convolution, one tap and one layer, and the split."""

    def make(folder: Path, entries: Sequence[LabelledEntry] = (), *, batch: int | None = None) -> Folder:
        folder.mkdir()
        (folder / "tapped.onnx").write_bytes(_teacher_onnx(batch))
        (folder / "labelled.json").write_text(json.dumps([to_json(entry) for entry in entries]))
        manifest = build_manifest(folder, _teacher(batch), {})
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return Folder(path=str(folder), sha256=manifest["digest"])

    return make


def _teacher(batch: int | None) -> Teacher:
    preprocessing = Preprocessing(
        layout="NCHW",
        channels="RGB",
        scale=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        dtype="float32",
        height=TEACHER_SIDE,
        width=TEACHER_SIDE,
    )
    return Teacher(
        preprocessing=preprocessing,
        output="logits",
        batch=batch,
        classes=TEACHER_CLASSES,
        class_order={"a": 0, "b": 1, "c": 2},
        class_names=("a", "b", "c"),
        taps=(Tap(name="tap_0", source="r", width=4),),
        accuracy=0.9,
        accuracy_low=0.8,
        accuracy_high=0.95,
        images=6,
        hypotheses=(),
        parameters=123,
        macs=7000,
        opset=17,
        producer="test",
        facts=FACTS,
        teacher_sha256="0" * 64,
        teacher_bytes=1,
        display_name="tiny.onnx",
    )


def _teacher_onnx(batch: int | None) -> bytes:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(3)
    weights = {
        # Asymmetric from left to right, so that an image and its mirror score differently.
        "w1": generator.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "w2": generator.normal(size=(TEACHER_CLASSES, 4)).astype(np.float32),
        "b2": np.arange(TEACHER_CLASSES, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["tap_0"]),
        helper.make_node("Gemm", ["tap_0", "w2", "b2"], ["logits"], transB=1),
    ]
    rows: int | str = "N" if batch is None else batch
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [rows, 3, TEACHER_SIDE, TEACHER_SIDE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [rows, TEACHER_CLASSES]),
            helper.make_tensor_value_info("tap_0", TensorProto.FLOAT, [rows, 4]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
