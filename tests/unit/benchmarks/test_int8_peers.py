"""Our int8 beside other tools': what is said where something is missing, and how rows become table and bars."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import int8_peers_tools as tools
from benchmarks.conditions import ROOT
from benchmarks.int8_peers import (
    KEPT_COLUMNS,
    SPEED_COLUMNS,
    all_bars,
    chosen,
    convolutions,
    engine,
    kept_cells,
    label,
    logit_error,
    operators_of,
    same_class,
    speed_cells,
    spread,
)
from benchmarks.kept_students import KeptFile, KeptStudent, inputs_of, kept_students
from pu_engine.jsonform import to_json
from tests.unit.exporters.small_onnx import write_model

PROGRAMS = sorted({peer.program for peer in tools.PEERS})
REQUIREMENTS = ("int8_peers_nncf.txt", "int8_peers_modelopt.txt")


def row(
    file: str, *, agreement: float = 0.99, speed: float = 300.0, runtime: str = "onnx", **more: Any
) -> dict[str, Any]:
    return {
        "student": "resnet18", "file": file, "runtime": runtime, "bytes": 1024 * 100, "size_share": 0.25,
        "agreement": 0.98, "test_agreement": agreement, "test_error": 0.0123, "accuracy": 0.5,
        "operators": {"QLinearConv": 9, "FusedConv": 11}, "cpu_seconds": 1.5, "parses": True,
        "images_per_cpu_second": {"1": spread([speed]), "2": spread([speed / 2])},
        "latency_ms": {"1": spread([3.0]), "2": spread([2.0])}, "engine_bytes": {"SM89": 2048}, **more,
    }  # fmt: skip


def ours(**changes: Any) -> list[dict[str, Any]]:
    rows = [row("fp32", agreement=1.0, speed=100.0), row("int8-cpu"), row("int8-trt", speed=110.0)]
    return [r | {"passed": True} | changes.get(r["file"].replace("-", "_"), {}) for r in rows]


def student(name: str) -> KeptStudent:
    file = KeptFile(path="student.onnx", size=10, seconds=1.0, passed=True, details={"opset": "18"})
    return KeptStudent(name=name, size=32, steps=50, files={"fp32": file})


def test_a_row_fills_every_column() -> None:
    kept, speed = kept_cells(row("ModelOpt")), speed_cells(row("ModelOpt"))
    assert (len(kept), len(speed)) == (len(KEPT_COLUMNS), len(SPEED_COLUMNS))
    assert kept == ["ModelOpt", "100", "25.0%", "98.0%", "99.0%", "1.23%", "50.0%"]
    assert speed == ["ModelOpt", "9 of 20", "300, 150", "3.00, 2.00", "1.5", "2 KiB"]


def test_a_label_says_what_is_withheld_and_what_runs_elsewhere() -> None:
    assert label(row("int8-cpu", passed=False)) == "int8-cpu, withheld"
    assert label(row("NNCF IR", runtime="openvino")) == "NNCF IR in OpenVINO"


def test_openvino_s_operators_are_not_known() -> None:
    assert convolutions({}) == ""
    assert convolutions({"Conv": 2, "QLinearAdd": 1}) == "0 of 2"


@pytest.mark.parametrize(
    ("parses", "sizes", "said"),
    [
        (None, {}, ""),
        (False, {}, "refused"),
        ("no TensorRT parser installed", {}, "no TensorRT parser installed"),
        (True, {"SM89": "The builder failed."}, "no engine"),
        (True, {"SM89": 3072}, "3 KiB"),
    ],
)
def test_tensorrt_s_answer_in_words(parses: object, sizes: dict[str, object], said: str) -> None:
    assert engine({"parses": parses, "engine_bytes": sizes}) == said


def test_bars_hold_ours_against_the_best_other_in_onnx_runtime() -> None:
    others = [row("ModelOpt", agreement=0.995, speed=200.0), row("NNCF", agreement=0.98, speed=400.0)]
    in_openvino = [row("NNCF IR", agreement=1.0, speed=900.0, runtime="openvino")]
    bars = {b["name"]: b for b in all_bars([*ours(), *others, *in_openvino])}
    assert [round(b["value"], 6) for b in bars.values()] == [0.75, 0.5, 0.5]
    assert [b["holds"] for b in bars.values()] == [False, True, True]


def test_a_withheld_file_has_no_bar() -> None:
    names = [b["name"] for b in all_bars([*ours(int8_cpu={"passed": False}), row("ModelOpt")])]
    assert names == ["resnet18: points of agreement that int8-trt is behind the best other"]


def test_spread_is_that_of_the_rounds() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "least": 1.0, "most": 3.0}


def test_a_folder_without_students_names_what_leaves_them(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"has no student: `python -m benchmarks\.exports .*--keep"):
        chosen(kept_students(tmp_path / "nowhere"), None, tmp_path)
    with pytest.raises(SystemExit, match="has no fastvit_t8"):
        chosen({"resnet18": student("resnet18")}, ["resnet18", "fastvit_t8"], tmp_path)


def test_kept_students_are_read_back(tmp_path: Path) -> None:
    for name in ("resnet18", "fastvit_t8"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "student.json").write_text(json.dumps(to_json(student(name))))
    (tmp_path / "half_written").mkdir()
    found = kept_students(tmp_path)
    assert found == {name: student(name) for name in ("resnet18", "fastvit_t8")}
    assert chosen(found, ["resnet18"], tmp_path) == [student("resnet18")]


def test_inputs_stay_on_the_disk(tmp_path: Path) -> None:
    for name in ("calibration", "validation", "compared", "measured", "validation.answers", "measured.labels"):
        np.save(tmp_path / f"{name}.npy", np.zeros(3))
    assert isinstance(inputs_of(tmp_path).calibration, np.memmap)


def test_a_missing_environment_names_the_target_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "ROOT", tmp_path)
    peer = next(peer for peer in tools.PEERS if peer.environment)
    with pytest.raises(SystemExit, match=r"has no environment .*: `make peer-environments` makes it"):
        tools.python_of(peer)
    assert "peer-environments:" in (ROOT / "Makefile").read_text()


def test_a_failing_program_ends_the_run_with_its_words(tmp_path: Path) -> None:
    elsewhere = tools.Peer(name="ModelOpt", environment="", program="int8_peers_modelopt.py", file="modelopt.onnx")
    with pytest.raises(SystemExit, match=r"ModelOpt made no file of .*\(exit status 1\):\n(.*\n)*.*No module named"):
        tools.quantise(elsewhere, tmp_path / "student.onnx", tmp_path / "calibration.npy", tmp_path)


@pytest.mark.slow  # two processes that import onnxruntime
@pytest.mark.parametrize(("name", "int8"), [("ort.onnx", 0), ("ort-u8s8.onnx", 2)])
def test_the_baseline_quantises_a_file(tmp_path: Path, name: str, int8: int) -> None:
    source, images = write_model(tmp_path / "small.onnx", layers=2), tmp_path / "calibration.npy"
    np.save(images, np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32))
    peer = next(peer for peer in tools.PEERS if peer.file == name)
    made = tools.quantise(peer, source, images, tmp_path)
    assert made.path.exists()
    assert made.cpu_seconds > 0
    assert "onnxruntime" in made.versions
    assert operators_of(made.path).get("QLinearConv", 0) >= int8


def test_a_tie_of_quantised_logits_is_no_agreement() -> None:
    before, tied = np.array([[0.0, 0.1, 1.0]], np.float32), np.array([[0.0, 1.0, 1.0]], np.float32)
    assert same_class(before, before) == 1.0
    assert same_class(before, tied) == 0.0


def test_the_error_of_logits_is_relative_to_their_spread() -> None:
    before = np.array([[1.0, -1.0], [1.0, -1.0]], np.float32)
    assert logit_error(before, before) == 0.0
    assert logit_error(before, before + 0.1) == pytest.approx(0.1, rel=1e-5)


def test_operators_are_those_that_run(tmp_path: Path) -> None:
    found = operators_of(write_model(tmp_path / "small.onnx", layers=2))
    assert "Relu" not in found  # fused
    assert convolutions(found) == "0 of 2"


def test_batches_cover_the_images_once() -> None:
    images = np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    sizes = [batch.ravel().tolist() for batch in tools.batches_of(images)(2)]
    assert sizes == [[0.0, 1.0], [2.0, 3.0], [4.0]]


def test_weights_beside_openvino_s_file_count(tmp_path: Path) -> None:
    (tmp_path / "nncf.xml").write_bytes(b"12")
    (tmp_path / "nncf.bin").write_bytes(b"345")
    made = tools.Made(path=tmp_path / "nncf.xml", seconds=0.0, cpu_seconds=0.0)
    assert made.bytes() == 5
    assert replace(made, path=tmp_path / "nncf.bin").bytes() == 3


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_peer_s_program_imports_nothing_of_ours(program: str) -> None:
    tree = ast.parse((ROOT / "benchmarks" / program).read_text())
    modules = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    modules += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert {"benchmarks", "exporters", "pu_engine", "punnet", "server"}.isdisjoint(m.split(".")[0] for m in modules)


@pytest.mark.parametrize("file", REQUIREMENTS)
def test_a_peer_s_environment_is_pinned_and_without_cuda(file: str) -> None:
    lines = [line for line in (ROOT / "benchmarks" / file).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    assert not [line for line in lines if re.match(r"torch|onnxruntime-gpu|cupy|cuda|nvidia-cu|triton", line)]
