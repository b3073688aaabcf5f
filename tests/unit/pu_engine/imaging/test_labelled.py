"""Labelled images from a tar and from files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pu_engine.errors import EngineError
from pu_engine.imaging import labelled
from pu_engine.types import File, LabelledFile, LabelledImages

Pack = Callable[[Path, Mapping[str, bytes]], File]


def labelled_file(folder: Path, label: str, data: bytes) -> LabelledFile:
    sha256 = hashlib.sha256(data).hexdigest()
    (folder / sha256).write_bytes(data)
    return LabelledFile(label=label, image=File(path=str(folder / sha256), sha256=sha256))


def code_of(images: LabelledImages) -> str:
    with pytest.raises(EngineError) as caught:
        list(labelled.read(images))
    return caught.value.code


def test_tar_order_is_kept(tmp_path: Path, pack: Pack) -> None:
    tar = pack(tmp_path / "a.tar", {"dog/2.jpg": b"x", "cat/1.jpg": b"y", "dog/1.jpg": b"zz"})
    found = list(labelled.read(LabelledImages(tar=tar)))
    assert [(i.key, i.label, i.data) for i in found] == [
        ("dog/2.jpg", "dog", b"x"),
        ("cat/1.jpg", "cat", b"y"),
        ("dog/1.jpg", "dog", b"zz"),
    ]


def test_leading_dot_of_tar_is_dropped(tmp_path: Path, pack: Pack) -> None:
    tar = pack(tmp_path / "a.tar", {"./dog/2.jpg": b"x"})
    assert [i.key for i in labelled.read(LabelledImages(tar=tar))] == ["dog/2.jpg"]


def test_given_order_of_files_is_kept(tmp_path: Path) -> None:
    files = tuple(labelled_file(tmp_path, label, data) for label, data in [("b", b"1"), ("a", b"2"), ("b", b"3")])
    found = list(labelled.read(LabelledImages(files=files)))
    assert [(i.label, i.data) for i in found] == [("b", b"1"), ("a", b"2"), ("b", b"3")]
    assert found[0].key == f"b/{files[0].image.sha256}"


def test_reading_twice_gives_the_same(tmp_path: Path, pack: Pack) -> None:
    images = LabelledImages(tar=pack(tmp_path / "a.tar", {f"c/{i}.png": bytes([i]) for i in range(20)}))
    assert list(labelled.read(images)) == list(labelled.read(images))


@pytest.mark.parametrize("name", ["flat.jpg", "train/dog/1.jpg"])
def test_members_are_label_and_name(tmp_path: Path, pack: Pack, name: str) -> None:
    tar = pack(tmp_path / "a.tar", {name: b"x"})
    with pytest.raises(EngineError, match=name) as caught:
        list(labelled.read(LabelledImages(tar=tar)))
    assert caught.value.code == "ARCHIVE_REJECTED"


def test_same_image_may_have_two_labels_but_not_come_twice(tmp_path: Path) -> None:
    once, other = labelled_file(tmp_path, "a", b"1"), labelled_file(tmp_path, "b", b"1")
    assert len(list(labelled.read(LabelledImages(files=(once, other))))) == 2
    assert code_of(LabelledImages(files=(once, once))) == "IMAGE_REJECTED"


def test_changed_bytes_are_noticed(tmp_path: Path, pack: Pack) -> None:
    tar = pack(tmp_path / "a.tar", {"a/1.jpg": b"x"})
    assert code_of(LabelledImages(tar=File(path=tar.path, sha256="0" * 64))) == "DIGEST_MISMATCH"
    file = labelled_file(tmp_path, "a", b"1")
    Path(file.image.path).write_bytes(b"2")
    assert code_of(LabelledImages(files=(file,))) == "DIGEST_MISMATCH"


def test_no_images_is_an_error(tmp_path: Path, pack: Pack) -> None:
    assert code_of(LabelledImages()) == "IMAGES_MISSING"
    assert code_of(LabelledImages(tar=pack(tmp_path / "a.tar", {}))) == "IMAGES_MISSING"


def test_tar_and_files_exclude_each_other(tmp_path: Path, pack: Pack) -> None:
    tar = pack(tmp_path / "a.tar", {"a/1.jpg": b"x"})
    assert code_of(LabelledImages(tar=tar, files=(labelled_file(tmp_path, "a", b"1"),))) == "REQUEST_INVALID"


@pytest.mark.parametrize("label", [" ", "x" * 257, "tab\there"])
def test_labels_are_short_printable_text(tmp_path: Path, label: str) -> None:
    assert code_of(LabelledImages(files=(labelled_file(tmp_path, label, b"1"),))) == "LABELS_UNMAPPABLE"


def test_large_file_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled, "MAX_BYTES", 3)
    assert code_of(LabelledImages(files=(labelled_file(tmp_path, "a", b"1234"),))) == "IMAGE_REJECTED"
