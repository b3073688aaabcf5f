from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from exporters import rtx_engine
from exporters.errors import ExportError

needs_rtx = pytest.mark.skipif(rtx_engine.missing() is not None, reason="tensorrt_rtx is not installed")


def write_model(path: Path, operator: str = "Relu", **attributes: Any) -> Path:
    """Convolution, one more operator, mean, matrix product: [batch, 3, 8, 8] -> [batch, 4]."""
    make, numpy = onnx.helper, onnx.numpy_helper
    rng = np.random.default_rng(0)
    weights = [
        numpy.from_array(rng.normal(size=(4, 3, 3, 3)).astype(np.float32), "kernel"),
        numpy.from_array(rng.normal(size=(4, 4)).astype(np.float32), "matrix"),
    ]
    nodes = [
        make.make_node("Conv", ["input", "kernel"], ["maps"], "first", pads=[1, 1, 1, 1]),
        make.make_node(operator, ["maps"], ["active"], "second", **attributes),
        make.make_node("GlobalAveragePool", ["active"], ["pooled"], "third"),
        make.make_node("Flatten", ["pooled"], ["flat"], "fourth"),
        make.make_node("MatMul", ["flat", "matrix"], ["logits"], "fifth"),
    ]
    graph = make.make_graph(
        nodes,
        "small",
        [make.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [make.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 4])],
        weights,
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_machine_without_the_package_is_told_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    said = rtx_engine.missing()
    assert said is not None
    assert "punnet[rtx]" in said


@needs_rtx
def test_an_engine_for_three_generations_is_built_without_a_gpu(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    facts = rtx_engine.build_engine(
        model, tmp_path / "small.engine", capabilities=("SM86", "SM89", "SM120"), max_batch=64
    )
    assert facts.profile == (1, 8, 64)
    assert facts.size == (tmp_path / "small.engine").stat().st_size > 1000
    assert facts.capabilities == ("SM86", "SM89", "SM120")
    assert facts.version.startswith("1.")


@needs_rtx
def test_a_small_largest_batch_narrows_the_profile(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    facts = rtx_engine.build_engine(model, tmp_path / "small.engine", capabilities=("SM89",), max_batch=4)
    assert facts.profile == (1, 4, 4)


@needs_rtx
def test_an_operator_that_is_not_supported_is_named_with_its_node(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "small.onnx", "Det")
    with pytest.raises(ExportError) as caught:
        rtx_engine.build_engine(model, tmp_path / "small.engine", capabilities=("SM89",), max_batch=8)
    assert "Det" in caught.value.message
    assert caught.value.details["nodes"] == "second"
    assert not (tmp_path / "small.engine").exists()
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_a_network_that_a_generation_cannot_compile_says_why(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    with pytest.raises(ExportError, match="GEMM"):
        rtx_engine.build_engine(model, tmp_path / "small.engine", capabilities=("SM75",), max_batch=8)


@needs_rtx
def test_an_unknown_capability_lists_the_known_ones(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    with pytest.raises(ExportError, match="SM87") as caught:
        rtx_engine.build_engine(model, tmp_path / "small.engine", capabilities=("SM87",), max_batch=8)
    assert "SM86" in caught.value.remedy


@needs_rtx
def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"can't read broken\.onnx"):
        rtx_engine.build_engine(tmp_path / "broken.onnx", tmp_path / "x.engine", capabilities=("SM89",), max_batch=8)
