"""Teachers and images become blobs and the messages that name them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from punnet.errors import InvalidTeacher
from punnet.material import gather_material, more_blobs
from punnet.options import CompressOptions
from punnet.v1 import compression_pb2

IMAGES = {"a": [b"1"], "b": [b"2"]}
# ModelProto with one initialiser whose external_data says location = "w"
EXTERNAL_MODEL = b"\x3a\x13\x2a\x11\x6a\x0f\x0a\x08location\x12\x03w.d"


def test_teacher_and_tar_are_named_by_digest(tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(b"\x08\x08")
    material = gather_material(tmp_path / "t.onnx", IMAGES, scratch=tmp_path, class_names=("a", "b"), taps=("relu",))
    assert material.teacher.sha256 == hashlib.sha256(b"\x08\x08").hexdigest()
    assert material.teacher.display_name == "t.onnx"
    assert (list(material.teacher.class_names), list(material.teacher.taps)) == (["a", "b"], ["relu"])
    assert material.images.tar.sha256 == hashlib.sha256((tmp_path / "images.tar").read_bytes()).hexdigest()
    assert [b.sha256 for b in material.blobs] == [material.teacher.sha256, material.images.tar.sha256]


def test_external_data_travels_with_its_location(tmp_path: Path) -> None:
    (tmp_path / "t.onnx").write_bytes(EXTERNAL_MODEL)
    (tmp_path / "w.d").write_bytes(b"weights")
    material = gather_material(tmp_path / "t.onnx", IMAGES, scratch=tmp_path)
    assert dict(material.teacher.external_data) == {"w.d": hashlib.sha256(b"weights").hexdigest()}
    assert len(material.blobs) == 3


def test_bytes_with_external_data_need_it_stated(tmp_path: Path) -> None:
    with pytest.raises(InvalidTeacher, match="bytes have no folder"):
        gather_material(EXTERNAL_MODEL, IMAGES, scratch=tmp_path)
    material = gather_material(EXTERNAL_MODEL, IMAGES, scratch=tmp_path, external_data={"w.d": b"weights"})
    assert list(material.teacher.external_data) == ["w.d"]


def test_bytes_that_are_no_model_are_left_to_the_appliance(tmp_path: Path) -> None:
    assert gather_material(b"PK\x03\x04", IMAGES, scratch=tmp_path).teacher.display_name == ""


def test_missing_teacher_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidTeacher, match=r"no file .*nowhere\.onnx"):
        gather_material(str(tmp_path / "nowhere.onnx"), IMAGES, scratch=tmp_path)
    with pytest.raises(InvalidTeacher, match=f"{tmp_path} is a folder"):
        gather_material(tmp_path, IMAGES, scratch=tmp_path)


def test_first_weights_and_excluded_images_are_named_in_the_request(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    (tmp_path / "test" / "a").mkdir(parents=True)
    (tmp_path / "test" / "a" / "1.jpg").write_bytes(b"image")
    request = compression_pb2.CompressRequest()
    options = CompressOptions(student_weights=tmp_path / "w.safetensors", excluded=tmp_path / "test")
    blobs = more_blobs(request, options, tmp_path)
    assert [blob.sha256 for blob in blobs] == [request.student.weights_sha256, request.selection.excluded_sha256]
    assert request.selection.excluded_sha256 == hashlib.sha256((tmp_path / "excluded.tar").read_bytes()).hexdigest()


def test_without_them_nothing_more_is_sent(tmp_path: Path) -> None:
    request = compression_pb2.CompressRequest()
    assert more_blobs(request, {}, tmp_path) == []
    assert request == compression_pb2.CompressRequest()
