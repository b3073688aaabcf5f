"""Facts of a teacher: counted on the file as it came, timed at batches that it can bear."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from pu_engine.guard import wire_scan
from pu_engine.jsonform import to_json
from pu_engine.teacher import teacher_facts
from tests.unit.conftest import FACTS


def branching() -> Any:
    """An If whose branches hold a Relu each, a Constant, and an operator of Microsoft's."""
    branches = [
        helper.make_graph(
            [helper.make_node("Relu", ["x"], [name])], name, [], [helper.make_tensor_value_info(name, 1, None)]
        )
        for name in ("yes", "no")
    ]
    nodes = [
        helper.make_node("Constant", [], ["c"], value_int=1),
        helper.make_node("Cast", ["c"], ["b"], to=TensorProto.BOOL),
        helper.make_node("If", ["b"], ["y"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Gelu", ["y"], ["z"], domain="com.microsoft"),
    ]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 2])], [])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=3)


def test_operators_are_counted_in_branches_and_by_domain() -> None:
    assert list(teacher_facts.operator_counts(branching()).items()) == [
        ("Relu", 2), ("Cast", 1), ("If", 1), ("com.microsoft.Gelu", 1),
    ]  # fmt: skip


def test_ir_version_is_the_one_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(branching().SerializeToString())
    assert teacher_facts.ir_version(tmp_path / "t.onnx") == 3


def test_ir_version_is_found_behind_other_fields_and_the_last_one_counts() -> None:
    first, last = b"\x08\x04", b"\x08\x0a"
    fixed = b"\x9d\x06" + bytes(4) + b"\x99\x06" + bytes(8)  # unknown fields of 4 and 8 bytes
    assert wire_scan.declared_ir_version(first + b"\x12\x02pt" + fixed + last) == 10
    assert wire_scan.declared_ir_version(b"\x12\x02pt") == 0


@pytest.mark.parametrize(
    ("macs", "batch"), [(0, 32), (40_000_000, 32), (70_000_000, 16), (4_000_000_000, 2), (10**12, 2)]
)
def test_costly_teachers_are_timed_at_smaller_batches(macs: int, batch: int) -> None:
    assert teacher_facts.large_batch(macs) == batch


def test_timings_and_the_parsers_answer_stay_out_of_digests() -> None:
    assert set(to_json(FACTS)) - set(to_json(FACTS, measured=False)) == {"latencies", "tensorrt"}
