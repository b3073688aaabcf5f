from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest

from exporters.half_precision import to_half
from exporters.tensor_comparison import relative_error, worst_node


def changed(model: Any, weight: str, factor: float) -> Any:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (tensor,) = (t for t in copy.graph.initializer if t.name == weight)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(factor), weight))
    return copy


@pytest.mark.parametrize(("weight", "operator"), [("second.weight", "Conv"), ("head.weight", "Gemm")])
def test_the_node_whose_weight_was_changed_is_found(small_graph: Any, weight: str, operator: str) -> None:
    found = worst_node(small_graph.model, changed(small_graph.model, weight, 1.5), {"input": small_graph.images[:4]})
    assert found is not None
    assert found.operator == operator
    readers = {node.name for node in small_graph.model.graph.node if weight in node.input}
    assert found.name in readers
    assert found.error_before == pytest.approx(0.0, abs=1e-6)
    assert found.error > 0.1


def test_a_weight_that_is_not_a_number_is_found_where_it_enters(small_graph: Any) -> None:
    broken = changed(small_graph.model, "second.weight", math.nan)
    found = worst_node(small_graph.model, broken, {"input": small_graph.images[:1]})
    assert found is not None
    assert math.isinf(found.error)
    assert found.operator == "Conv"


def test_half_precision_shares_the_names_and_is_close(small_graph: Any) -> None:
    found = worst_node(small_graph.model, to_half(small_graph.model), {"input": small_graph.images[:4]})
    assert found is not None
    assert 0 < found.error < 2e-3
    assert "relative error" in str(found)


def test_error_is_relative_to_the_first_and_infinite_for_another_shape() -> None:
    assert relative_error(np.array([3.0, 4.0]), np.array([3.0, 4.5])) == pytest.approx(0.1)
    assert math.isinf(relative_error(np.zeros(2), np.zeros(3)))
