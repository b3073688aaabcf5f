"""External data: wherever a tensor hides, and whatever its path is made of, only bound blobs are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.hostile.confined_intake import take_in
from tests.hostile.refusals import code_of, edited

CANARY = b"canary-3f9c"
LOCATIONS = ["../secret", "../../../../etc/passwd", "/etc/passwd", "secret", "link", "folder/secret", "", "w\0", "W"]


def outside(location: str, name: str = "e") -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def as_initializer(model: Any, tensor: Any) -> None:
    model.graph.initializer.append(tensor)


def as_attribute(model: Any, tensor: Any) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["e"], value=tensor))


def in_a_list(model: Any, tensor: Any) -> None:
    node = helper.make_node("Constant", [], ["e"])
    node.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSORS, tensors=[tensor]))
    model.graph.node.insert(0, node)


def in_a_branch(model: Any, tensor: Any) -> None:
    condition = numpy_helper.from_array(np.array(True), "cond")
    graphs = []
    for name in ("a", "b"):
        node = helper.make_node("Identity", ["x"], [f"{name}_out"])
        info = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        graphs.append(helper.make_graph([node], name, [], [info]))
    graphs[0].initializer.append(tensor)
    model.graph.initializer.append(condition)
    model.graph.node.append(helper.make_node("If", ["cond"], ["z"], then_branch=graphs[0], else_branch=graphs[1]))


def in_a_function(model: Any, tensor: Any) -> None:
    body = [helper.make_node("Constant", [], ["k"], value=tensor), helper.make_node("Neg", ["a"], ["b"])]
    model.functions.append(helper.make_function("f", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("f", 1))
    model.graph.node.append(helper.make_node("F", ["x"], ["z"], domain="f"))


PLACES: dict[str, Callable[[Any, Any], None]] = {
    place.__name__: place for place in (as_initializer, as_attribute, in_a_branch, in_a_function)
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", LOCATIONS)
def test_unbound_location_is_refused_wherever_it_stands(place: str, location: str) -> None:
    made = edited(lambda model: PLACES[place](model, outside(location)))
    assert code_of(made, {"w": bytes(4)}) == "MODEL_EXTERNAL_DATA"


@pytest.mark.parametrize("place", PLACES)
def test_bound_location_passes_wherever_it_stands(place: str) -> None:
    assert code_of(edited(lambda model: PLACES[place](model, outside("w"))), {"w": bytes(4)}) == ""


@pytest.mark.parametrize("location", ["w", "../secret"])
def test_tensors_in_lists_and_sparse_tensors_are_refused_either_way(location: str) -> None:
    code = code_of(edited(lambda model: in_a_list(model, outside(location))), {"w": bytes(4)})
    assert code in ("MODEL_EXTERNAL_DATA", "MODEL_BAD_GRAPH")
    sparse = onnx.SparseTensorProto(values=outside(location), indices=outside(location), dims=[4])
    made = edited(lambda model: model.graph.sparse_initializer.append(sparse))
    assert code_of(made, {"w": bytes(4)}) == "MODEL_BAD_TENSOR"


@pytest.mark.parametrize(
    ("key", "value"), [("offset", "-1"), ("offset", "5"), ("length", "5"), ("length", "1e9"), ("offset", "9" * 30)]
)
def test_range_outside_of_a_blob_is_refused(key: str, value: str) -> None:
    tensor = outside("w")
    tensor.external_data.add(key=key, value=value)
    assert code_of(edited(lambda model: as_initializer(model, tensor)), {"w": bytes(4)}) == "MODEL_EXTERNAL_DATA"


def leave(link: str, secret: Path, given: Path) -> None:
    if link == "hard":
        os.link(secret, given / "link")
    elif link == "symbolic":
        (given / "link").symlink_to(secret)
    else:
        given.rmdir()
        given.parent.joinpath("real").mkdir()
        (given.parent / "real" / "link").write_bytes(secret.read_bytes())
        given.symlink_to(given.parent / "real")


@pytest.mark.parametrize("link", ["hard", "symbolic", "parent"])
def test_link_beside_the_model_is_never_read(link: str, tmp_path: Path) -> None:
    """onnxruntime followed a hard link from a model's path and gave the secret out as its output."""
    secret, given = tmp_path / "secret", tmp_path / "given"
    secret.write_bytes(CANARY)
    given.mkdir()
    leave(link, secret, given)
    made = edited(lambda model: as_initializer(model, outside("link")))
    assert take_in(tmp_path, made.SerializeToString()).code == "MODEL_EXTERNAL_DATA"
    left = [path.read_bytes() for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert left
    assert not any(CANARY in data for data in left)
