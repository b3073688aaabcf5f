"""Removing what a stage left, whatever it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from server.folders import remove_tree
from server.stage_execution import _prepare

DEPTH = 1200  # beyond Python's recursion and a path's 4096 characters


def deep(folder: Path) -> None:
    folder.mkdir()
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(folder)
        for _ in range(DEPTH):
            os.mkdir("deeper")
            os.chdir("deeper")
        Path("file").write_text("x")
    finally:
        os.fchdir(before)
        os.close(before)


def closed(folder: Path) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("x")
    (folder / "a" / "b").chmod(0)
    (folder / "a").chmod(0)
    folder.chmod(0)


def linked(folder: Path) -> None:
    folder.mkdir()
    (folder / "file").symlink_to("../kept/file")
    (folder / "folder").symlink_to("../kept", target_is_directory=True)
    os.mkfifo(folder / "fifo")
    (folder / "plain").write_text("x")


def plain(path: Path) -> None:
    path.write_text("x")


LEFT: dict[str, Callable[[Path], None]] = {
    "deep": deep,
    "closed": closed,
    "linked": linked,
    "file": plain,
    "link": lambda path: path.symlink_to("kept", target_is_directory=True),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "FIFO": os.mkfifo,
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("left", LEFT)
def test_whatever_is_there_is_removed_and_nothing_else(left: str, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("kept")
    LEFT[left](tmp_path / "left")
    remove_tree(tmp_path / "left")
    assert not os.path.lexists(tmp_path / "left")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").read_text() == "kept"


@pytest.mark.parametrize("name", ["inputs.json", "error.json", "stderr.log", "out", "tmp"])
@pytest.mark.parametrize("left", ["linked", "file", "link"])
def test_stage_starts_over_what_an_earlier_run_left(name: str, left: str, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    workdir = tmp_path / "work"
    workdir.mkdir()
    LEFT[left](workdir / name)
    _prepare(workdir, {"seed": 1})
    assert [path.name for path in workdir.iterdir()] == ["inputs.json"]
    assert (workdir / "inputs.json").is_file()
