from __future__ import annotations

import stat
import zipfile
from pathlib import Path

import pytest

from punnet.bundle_archive import unpack
from punnet.errors import IntegrityError


def write_zip(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def test_a_bundle_is_unpacked_below_the_folder(tmp_path: Path) -> None:
    bundle = write_zip(tmp_path / "bundle.zip", "bundle-rtx/a.txt", "bundle-rtx/b/c.txt")
    folder = unpack(bundle, tmp_path / "out")
    assert folder == tmp_path / "out" / "bundle-rtx"
    assert (folder / "b" / "c.txt").read_text() == "bundle-rtx/b/c.txt"


@pytest.mark.parametrize("name", ["../a.txt", "/a.txt", "bundle-rtx/../../a.txt", "bundle-rtx\\..\\a.txt"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(IntegrityError):
        unpack(write_zip(tmp_path / "bundle.zip", name), tmp_path / "out")
    assert not (tmp_path / "a.txt").exists()


def test_two_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="several folders"):
        unpack(write_zip(tmp_path / "bundle.zip", "one/a.txt", "two/a.txt"), tmp_path / "out")


def test_a_link_is_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("bundle-rtx/link")
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(IntegrityError, match="links"):
        unpack(tmp_path / "bundle.zip", tmp_path / "out")


def test_what_is_no_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bundle.zip").write_bytes(b"not a zip")
    with pytest.raises(IntegrityError, match="no bundle"):
        unpack(tmp_path / "bundle.zip", tmp_path / "out")
