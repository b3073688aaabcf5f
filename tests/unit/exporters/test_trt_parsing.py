"""TensorRT's parser is asked in a process of its own; whatever becomes of that is an answer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from exporters import trt_parsing
from exporters.engine_builder import missing
from exporters.trt_parsing import Refusal

needs_parser = pytest.mark.skipif(missing("tensorrt_rtx") is not None, reason="tensorrt_rtx is not installed")


@pytest.fixture
def two_dets(tmp_path: Path) -> Path:
    """A model of which two nodes are of an operator that no TensorRT has."""
    nodes = [
        helper.make_node("Det", ["input"], ["d1"], name="first"),
        helper.make_node("Relu", ["input"], ["r"]),
        helper.make_node("Det", ["r"], ["d2"], name="second"),
        helper.make_node("Add", ["d1", "d2"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return path


@needs_parser
def test_every_node_of_a_missing_operator_is_named(two_dets: Path) -> None:
    said = trt_parsing.parse(two_dets)
    assert [(r.node, r.operator, r.reason) for r in said.refused] == [
        ("first", "Det", "the parser has no such operator"),
        ("second", "Det", "the parser has no such operator"),
    ]
    assert said.parser.startswith("TensorRT")
    assert (said.refused_nodes, said.unchecked) == (2, "")


@needs_parser
def test_model_that_it_takes_has_no_refusals(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    said = trt_parsing.parse(tmp_path / "m.onnx")
    assert (said.refused, said.refused_nodes, said.unchecked) == ((), 0, "")


@needs_parser
def test_file_that_is_no_model_is_refused_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    said = trt_parsing.parse(tmp_path / "m.onnx")
    assert said.refused_nodes == 1
    assert said.refused[0].node == ""


def test_missing_parser_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in trt_parsing.PARSERS:
        monkeypatch.setitem(sys.modules, name, None)
    assert trt_parsing.parse(tmp_path / "m.onnx").unchecked == "no TensorRT parser installed"
    assert trt_parsing.parse_here(tmp_path / "m.onnx").unchecked == "no TensorRT parser installed"


@needs_parser
@pytest.mark.parametrize(
    ("program", "said"),
    [("import os; os.abort()", "SIGABRT"), ("raise SystemExit(5)", "exit status 5")],
)
def test_crash_of_the_parser_is_an_answer(
    program: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = subprocess.run

    def crash(command: list[str], **options: Any) -> Any:
        return run([command[0], "-c", program], **options)

    monkeypatch.setattr(subprocess, "run", crash)
    answer = trt_parsing.parse(tmp_path / "m.onnx")
    assert answer.unchecked == f"TensorRT's parser ended with {said}"
    assert (answer.parser, answer.refused) == ("", ())


@needs_parser
def test_parser_that_hangs_is_ended(two_dets: Path) -> None:
    assert "took more than 0.001 s" in trt_parsing.parse(two_dets, timeout_seconds=0.001).unchecked


def test_node_without_a_name_is_named_by_its_place_and_counts_once() -> None:
    def error(place: int, name: str, text: str) -> Any:
        return SimpleNamespace(
            node=lambda: place, node_name=lambda: name, node_operator=lambda: "Det", desc=lambda: text
        )

    rows = trt_parsing._refusals(
        [
            error(4, "", "a\n b\n[checkMacros.cpp::catchCudaError::250] no driver"),
            error(4, "", "again"),
            error(5, "", "false"),
        ]
    )
    assert rows == [
        Refusal(node="#4", operator="Det", reason="a b"),
        Refusal(node="#5", operator="Det", reason="the parser has no such operator"),
    ]
