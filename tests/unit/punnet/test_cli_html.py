"""Where `--html` may put a page: said before a job runs for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from punnet.cli import app
from punnet.cli_page import check_writable, place
from punnet.errors import InvalidRequest


def test_file_in_a_folder_that_is_there_will_do_and_is_left_alone(tmp_path: Path) -> None:
    check_writable(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.html").write_text("old")
    check_writable(tmp_path / "old.html")
    assert (tmp_path / "old.html").read_text() == "old"


@pytest.mark.parametrize(
    ("page", "why"),
    [
        (".", "is a folder"),
        ("nowhere/page.html", "There is no folder"),
        ("/proc/page.html", "can't be written"),
        ("pipe", "no regular file"),
    ],
)
def test_place_that_takes_no_file_is_refused(tmp_path: Path, page: str, why: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidRequest, match=why) as caught:
        check_writable(tmp_path / page)
    assert caught.value.code == "REQUEST_INVALID"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("command", [["inspect", "t.onnx", "--images", "i"], ["pool", "info", "p"]])
def test_both_commands_refuse_it_before_they_look_for_a_server(command: list[str], tmp_path: Path) -> None:
    arguments = [*command, "--html", str(tmp_path), "--server", f"unix:{tmp_path}/nothing.sock"]
    with pytest.raises(InvalidRequest, match="is a folder"):
        app(arguments, standalone_mode=False)


def test_page_is_put_there_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "made").write_text("page")
    place(tmp_path / "made", tmp_path / "[b]page.html")
    assert (tmp_path / "[b]page.html").read_text() == "page"
    out, err = capsys.readouterr()
    assert (out, "[b]page.html" in err) == ("", True)


def test_place_that_went_away_meanwhile_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "made").write_text("page")
    with pytest.raises(InvalidRequest, match="can't be written: No such file"):
        place(tmp_path / "made", tmp_path / "gone" / "page.html")
