"""Small ONNX files for the tests of builders and bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx


def write_model(path: Path, operator: str = "Relu", *, layers: int = 1, **attributes: Any) -> Path:
    """Convolutions with one operator after each, mean, matrix product: [batch, 3, 8, 8] -> [batch, 4].

    With more layers a build takes longer: forty take seconds.
    """
    make, numpy = onnx.helper, onnx.numpy_helper
    rng = np.random.default_rng(0)
    weights = [numpy.from_array(rng.normal(size=(4, 4)).astype(np.float32), "matrix")]
    nodes, source, width = [], "input", 3
    for layer in range(layers):
        kernel = rng.normal(size=(4, width, 3, 3)).astype(np.float32) / width
        weights.append(numpy.from_array(kernel, f"kernel{layer}"))
        maps = f"maps{layer}"
        nodes.append(make.make_node("Conv", [source, f"kernel{layer}"], [maps], f"conv{layer}", pads=[1, 1, 1, 1]))
        nodes.append(make.make_node(operator, [maps], [f"active{layer}"], f"second{layer}", **attributes))
        source, width = f"active{layer}", 4
    nodes += [
        make.make_node("GlobalAveragePool", [source], ["pooled"], "third"),
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
