"""Where a private server lives, and what is said when it can't be started."""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from punnet import private_server
from punnet.errors import ServerUnavailable
from punnet.private_server import answers, data_folder, ensure, recorded_address, socket_path


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", tempfile.mkdtemp(prefix="pnt-", dir="/tmp"))


def test_data_folder_is_stated_or_from_the_environment_or_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PUNNET_DATA", raising=False)
    assert data_folder() == Path.home() / ".local" / "share" / "punnet"
    monkeypatch.setenv("PUNNET_DATA", "/data")
    assert data_folder() == Path("/data")
    assert data_folder("/stated") == Path("/stated")


def test_socket_path_is_short_however_deep_the_data_lies(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*("d" * 50 for _ in range(5)))
    assert len(os.fsencode(socket_path(deep))) <= 107
    assert socket_path(deep) == socket_path(deep)
    assert socket_path(deep) != socket_path(tmp_path)


def test_two_names_of_one_folder_share_a_socket(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    assert socket_path(tmp_path / "data") == socket_path(tmp_path / "link")


def test_without_a_runtime_folder_one_of_the_users_alone_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = socket_path(tmp_path).parent
    assert folder == tmp_path / f"punnet-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_folder_that_others_may_enter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / f"punnet-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(ServerUnavailable, match="yours alone"):
        socket_path(tmp_path)


def test_record_counts_only_while_its_process_lives(tmp_path: Path) -> None:
    assert recorded_address(tmp_path) is None
    (tmp_path / "server.json").write_text(json.dumps({"address": "unix:/x", "pid": os.getpid(), "version": "0"}))
    assert recorded_address(tmp_path) == "unix:/x"
    (tmp_path / "server.json").write_text(json.dumps({"address": "unix:/x", "pid": 2**22 + 1, "version": "0"}))
    assert recorded_address(tmp_path) is None
    (tmp_path / "server.json").write_text('{"address": "uni')
    assert recorded_address(tmp_path) is None


def test_nothing_answers_where_nothing_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert not answers(f"127.0.0.1:{free.getsockname()[1]}")


def test_missing_packages_are_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_server, "SERVER_PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(ServerUnavailable) as caught:
        ensure(tmp_path / "data")
    assert caught.value.code == "SERVER_START_FAILED"
    assert "no_such_package" in caught.value.message
    assert "numpy" not in caught.value.message
    assert "pip install 'punnet[cpu]'" in caught.value.remedy


def test_server_that_dies_at_once_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interpreter = tmp_path / "python"  # in place of an installation that is broken
    interpreter.write_text("#!/bin/sh\necho earlier; echo 'ModuleNotFoundError: torch' >&2; exit 1\n")
    interpreter.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    with pytest.raises(ServerUnavailable, match="ModuleNotFoundError: torch") as caught:
        ensure(tmp_path / "data")
    assert caught.value.details["log"] == str(tmp_path / "data" / "server.log")


def test_what_a_start_makes_is_its_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_server, "SERVER_PACKAGES", ("no_such_package",))
    before = os.umask(0o022)
    try:
        with pytest.raises(ServerUnavailable):
            ensure(tmp_path / "data")
    finally:
        os.umask(before)
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / "start.lock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("folder", ["/proc/nope", "file/below"])
def test_data_folder_that_cannot_be_made_is_said(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerUnavailable, match="can't be the data folder") as caught:
        ensure(tmp_path / folder)
    assert caught.value.code == "SERVER_START_FAILED"
    assert "--data" in caught.value.remedy
