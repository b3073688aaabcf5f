"""External data locations, read from the wire and compared with what onnx itself writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from punnet.errors import InvalidTeacher
from punnet.external_data import external_files, locations


def external(name: str, location: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("offset", "0"), ("location", location), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(*tensors: TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph(list(nodes), "g", [], [], list(tensors)))


def test_initialisers_name_their_files_once_each() -> None:
    inline = numpy_helper.from_array(np.arange(3, dtype=np.float32), "inline")
    found = locations(
        model(external("a", "w.data"), inline, external("b", "w.data"), external("c", "v.data")).SerializeToString()
    )
    assert found == ("v.data", "w.data")


def test_constants_in_nested_graphs_and_functions_are_found() -> None:
    constant = helper.make_node("Constant", [], ["k"], value=external("k", "inner.data"))
    branch = helper.make_graph([constant], "branch", [], [])
    outer = model(nodes=(helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),))
    function = outer.functions.add(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["q"], value=external("q", "function.data")))
    assert locations(outer.SerializeToString()) == ("function.data", "inner.data")


def test_sparse_initialisers_are_found() -> None:
    outer = model()
    sparse = outer.graph.sparse_initializer.add()
    sparse.values.CopyFrom(external("v", "values.data"))
    assert locations(outer.SerializeToString()) == ("values.data",)


def test_weights_that_look_like_entries_are_not_read() -> None:
    disguised = external("a", "secret.data").SerializeToString()
    tensor = TensorProto(name="raw", data_type=TensorProto.UINT8, dims=[len(disguised)], raw_data=disguised)
    assert locations(model(tensor).SerializeToString()) == ()


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        found = locations(data)
    except ValueError:
        return
    assert all(isinstance(location, str) for location in found)


@given(st.integers(1, 200))
def test_truncated_model_is_refused_or_names_no_more(cut: int) -> None:
    whole = model(external("a", "w.data"), external("b", "v.data")).SerializeToString()
    try:
        found = locations(whole[:-cut])
    except ValueError:
        return
    assert set(found) <= {"v.data", "w.data"}


def test_endless_nesting_is_refused() -> None:
    data = b""
    for _ in range(60):  # graph -> node -> attribute -> graph, from the inside out
        for tag in (0x32, 0x2A, 0x0A):
            data = bytes([tag]) + varint(len(data)) + data
    with pytest.raises(ValueError, match="nested"):
        locations(b"\x3a" + varint(len(data)) + data)


def varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def test_files_beside_the_teacher_are_found(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.onnx"
    teacher.write_bytes(model(external("a", "weights/w.data")).SerializeToString())
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.data").write_bytes(bytes(8))
    assert external_files(teacher) == {"weights/w.data": tmp_path / "weights" / "w.data"}


@pytest.mark.parametrize("location", ["../up.data", "/etc/hostname", "a/../../up.data", "..\\up.data"])
def test_locations_outside_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    teacher = tmp_path / "deep" / "teacher.onnx"
    teacher.parent.mkdir()
    teacher.write_bytes(model(external("a", location)).SerializeToString())
    (tmp_path / "up.data").write_bytes(b"secret")
    with pytest.raises(InvalidTeacher) as caught:
        external_files(teacher)
    assert caught.value.code == "MODEL_EXTERNAL_DATA"


def test_linked_location_is_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher.onnx").write_bytes(model(external("a", "w.data")).SerializeToString())
    (tmp_path / "w.data").symlink_to("/etc/hostname")
    with pytest.raises(InvalidTeacher, match="not a plain file"):
        external_files(tmp_path / "teacher.onnx")


def test_missing_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "teacher.onnx").write_bytes(model(external("a", "w.data")).SerializeToString())
    with pytest.raises(InvalidTeacher, match=r"'w\.data', which is not in"):
        external_files(tmp_path / "teacher.onnx")


def test_files_that_are_no_model_name_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "zip.onnx").write_bytes(b"PK\x03\x04" + bytes(100))
    assert external_files(tmp_path / "empty.onnx") == {}
    assert external_files(tmp_path / "zip.onnx") == {}


def test_real_teachers_name_what_onnx_says(shared: Path) -> None:
    teachers = sorted((shared / "teachers").glob("*.onnx"))
    named = {t.name: set(locations(t.read_bytes())) for t in teachers}
    assert {name: found for name, found in named.items() if found} == {
        "fashion_mlp_extdata.onnx": {"fashion_mnist.onnx.data"},
        "resnet20_extdata.onnx": {"resnet20_extdata.onnx.data"},
    }


def test_missing_file_is_named_with_the_whole_path_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "teacher.onnx").write_bytes(model(external("a", "w.data")).SerializeToString())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidTeacher, match=rf"'w\.data', which is not in the folder {tmp_path}\. Put"):
        external_files(Path("teacher.onnx"))
