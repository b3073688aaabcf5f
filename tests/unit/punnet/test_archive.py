"""Deterministic tars of labelled images and of pools."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from punnet.archive import Image, LabelledSource, Member, pack_images, pack_labelled, write_tar
from punnet.errors import InvalidImages
from punnet.transfer import file_sha256


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for label, name in (("cat", "b.png"), ("cat", "a.jpg"), ("größer dog", "a.jpg")):
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / name).write_bytes(f"{label}/{name}".encode())
    return folder


def names(tar: Path) -> list[str]:
    with tarfile.open(tar, "r:") as opened:
        return opened.getnames()


def test_folder_becomes_sorted_members_named_by_label(images: Path, tmp_path: Path) -> None:
    assert pack_labelled(images, tmp_path / "t.tar") == 3
    assert names(tmp_path / "t.tar") == ["cat/a.jpg", "cat/b.png", "größer dog/a.jpg"]
    with tarfile.open(tmp_path / "t.tar", "r:") as opened:
        file = opened.extractfile("cat/b.png")
        assert file is not None
        assert file.read() == b"cat/b.png"


def test_tar_tells_nothing_of_the_machine(images: Path, tmp_path: Path) -> None:
    pack_labelled(images, tmp_path / "t.tar")
    with tarfile.open(tmp_path / "t.tar", "r:") as opened:
        for member in opened:
            assert member.isreg()
            assert not member.issparse()
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_same_images_give_the_same_bytes(images: Path, tmp_path: Path) -> None:
    pack_labelled(images, tmp_path / "one.tar")
    (images / "cat" / "a.jpg").touch(mode=0o777)
    pack_labelled(images, tmp_path / "two.tar")
    assert file_sha256(tmp_path / "one.tar") == file_sha256(tmp_path / "two.tar")


def test_mapping_of_paths_and_bytes_keeps_its_order(images: Path, tmp_path: Path) -> None:
    source: dict[str, list[Image]] = {
        "cat": [images / "cat" / "b.png", b"\x89PNG"],
        "dog": [str(images / "cat" / "a.jpg")],
    }
    assert pack_labelled(source, tmp_path / "t.tar") == 3
    assert names(tmp_path / "t.tar") == ["cat/000000-b.png", "cat/000001", "dog/000002-a.jpg"]


def test_pairs_may_repeat_a_file_name(images: Path, tmp_path: Path) -> None:
    pairs = [("x", images / "cat" / "a.jpg"), ("x", images / "größer dog" / "a.jpg")]
    assert pack_labelled(iter(pairs), tmp_path / "t.tar") == 2
    assert len(set(names(tmp_path / "t.tar"))) == 2


def test_hidden_files_and_lists_beside_the_labels_stay_out(images: Path, tmp_path: Path) -> None:
    (images / "labels.csv").write_text("a,b")
    (images / "cat" / ".DS_Store").write_bytes(b"x")
    assert pack_labelled(images, tmp_path / "t.tar") == 3


def test_image_without_a_label_is_refused(images: Path, tmp_path: Path) -> None:
    (images / "stray.JPG").write_bytes(b"x")
    with pytest.raises(InvalidImages, match=r"stray\.JPG is an image without a label"):
        pack_labelled(images, tmp_path / "t.tar")


def test_link_to_an_image_is_refused(images: Path, tmp_path: Path) -> None:
    (images / "cat" / "c.png").symlink_to("/etc/hostname")
    with pytest.raises(InvalidImages, match="is a link"):
        pack_labelled(images, tmp_path / "t.tar")


def test_link_to_a_label_is_refused(images: Path, tmp_path: Path) -> None:
    (images / "fish").symlink_to(images / "cat")
    with pytest.raises(InvalidImages, match="is a link"):
        pack_labelled(images, tmp_path / "t.tar")


def test_linked_path_of_a_mapping_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(images / "cat" / "a.jpg")
    with pytest.raises(InvalidImages, match="is a link"):
        pack_labelled({"cat": [tmp_path / "link"]}, tmp_path / "t.tar")


def test_folder_within_a_label_is_refused(images: Path, tmp_path: Path) -> None:
    (images / "cat" / "more").mkdir()
    with pytest.raises(InvalidImages, match="a folder within a label's folder"):
        pack_labelled(images, tmp_path / "t.tar")


@pytest.mark.parametrize("label", ["", "a/b", "..", ".", "x" * 201, "nul\0", "a\u202eb", "a\\b"])
def test_labels_that_are_no_names_are_refused(label: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidImages, match="can't be a label"):
        pack_labelled({label: [b"x"]}, tmp_path / "t.tar")


def test_missing_folder_and_no_images_say_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    sources: list[LabelledSource] = [tmp_path / "nowhere", tmp_path / "empty", {}]
    for source in sources:
        with pytest.raises(InvalidImages) as caught:
            pack_labelled(source, tmp_path / "t.tar")
        assert caught.value.code == "IMAGES_MISSING"


def test_file_in_place_of_the_folder_is_called_one(images: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidImages, match=r"a\.jpg is a file\."):
        pack_labelled(images / "cat" / "a.jpg", tmp_path / "t.tar")


@pytest.mark.parametrize("name", [b"a\xe2\x80\xaegnp.jpg", b"caf\xe9.jpg", b"a\\b.jpg", b"a\n.jpg"])
def test_name_that_no_appliance_takes_is_to_be_renamed(images: Path, tmp_path: Path, name: bytes) -> None:
    file = images / "cat" / os.fsdecode(name)
    file.write_bytes(b"x")
    with pytest.raises(InvalidImages) as caught:
        pack_labelled(images, tmp_path / "t.tar")
    assert caught.value.code == "ARCHIVE_REJECTED"
    assert caught.value.remedy == f"Rename {file.name!r} in the folder '{images / 'cat'}'."
    assert repr(str(file)) in caught.value.message
    assert str(caught.value).encode()


def test_folder_of_a_pool_that_no_appliance_takes_is_to_be_renamed(tmp_path: Path) -> None:
    bad = tmp_path / "a\u202eb"
    bad.mkdir()
    (bad / "c.jpg").write_bytes(b"x")
    with pytest.raises(InvalidImages) as caught:
        write_tar([Member(name="a\u202eb/c.jpg", source=bad / "c.jpg")], tmp_path / "t.tar")
    assert caught.value.remedy == f"Rename 'a\\u202eb' in the folder '{tmp_path}'."


def test_images_below_a_folder_are_packed_whatever_their_folders(tmp_path: Path) -> None:
    for name in ("b/2.png", "1.jpg", "b/c/3.JPEG", ".cache/4.jpg", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(name.encode())
    assert pack_images(tmp_path / "in", tmp_path / "out.tar") == 3
    with tarfile.open(tmp_path / "out.tar") as tar:
        assert tar.getnames() == ["1.jpg", "b/2.png", "b/c/3.JPEG"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidImages, match="no JPEG or PNG"):
        pack_images(tmp_path, tmp_path / "out.tar")
