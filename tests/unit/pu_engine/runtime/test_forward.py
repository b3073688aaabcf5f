"""onnxruntime's failures are typed errors, whatever they say."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from pu_engine.errors import EngineError
from pu_engine.runtime import forward


def test_a_failure_that_quotes_bytes_of_the_model_which_are_no_text_is_a_bad_graph() -> None:
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"], mode=b"nea\xc9t")
    scales = helper.make_tensor("scales", TensorProto.FLOAT, [2], [1.0, 2.0])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", [ends[0]], [ends[1]], [scales])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(EngineError) as caught:
        forward.observe(model, ["y"], np.zeros((1, 4), np.float32), threads=1)
    assert caught.value.code == "MODEL_BAD_GRAPH"
    assert "nea\ufffdt" in caught.value.details["onnxruntime"]
