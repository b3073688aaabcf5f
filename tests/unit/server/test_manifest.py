from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pu_engine.pipeline import ENGINE_VERSION, INGEST
from pu_engine.results import build_manifest, seal
from server.manifest import ERROR_BYTES, ProtocolError, read_error, read_finished

EXTRA = {
    "stage": "ingest",
    "schema": INGEST.schema,
    "engine": ENGINE_VERSION,
    "seconds": 1.5,
    "peak_memory_bytes": 1 << 20,
    "versions": {},
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    (folder / "pool.json").write_text("{}")
    (folder / "sub" / "a.timing.json").write_text("[1]")
    manifest = build_manifest(folder, {"images": 3, "warnings": ["few images"]}, EXTRA)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def write_sealed(out: Path, value: dict[str, Any]) -> None:
    """Write a manifest whose seal is right, as whoever forges one would."""
    rows = {name: row for name, row in value.items() if name != "seal"}
    (out / "manifest.json").write_text(json.dumps({**rows, "seal": seal(rows)}))


def test_manifest_of_the_engine_is_believed(out: Path) -> None:
    manifest = read_finished(INGEST, out)
    assert [(f.path, f.size, f.reproducible) for f in manifest.files] == [
        ("pool.json", 2, True),
        ("sub/a.timing.json", 3, False),
    ]
    assert manifest.files[0].sha256 == hashlib.sha256(b"{}").hexdigest()
    assert (manifest.result["images"], manifest.seconds, manifest.peak_memory_bytes) == (3, 1.5, 1 << 20)
    assert manifest.warnings == ("few images",)


def _rows(value: Any) -> Any:
    return value["files"][0]


LIES: list[Callable[[Any], object]] = [
    lambda v: v.update(stage="intake"),
    lambda v: v.update(schema=99),
    lambda v: v.update(engine="0.0.0"),
    lambda v: v.update(result=[]),
    lambda v: v.update(digest="0" * 64),
    lambda v: v.update(seconds="1e999"),
    lambda v: v.update(peak_memory_bytes=-1),
    lambda v: v.update(files={}),
    lambda v: v.update(files=[*v["files"], v["files"][0]]),
    lambda v: v.pop("files"),
    lambda v: _rows(v).update(path="../../etc/passwd"),
    lambda v: _rows(v).update(path="/etc/passwd"),
    lambda v: _rows(v).update(path="sub/../pool.json"),
    lambda v: _rows(v).update(path=".hidden"),
    lambda v: _rows(v).update(path=""),
    lambda v: _rows(v).update(path="a\ud800"),
    lambda v: _rows(v).update(path="a\0b"),
    lambda v: v.update(peak_memory_bytes=float("inf")),
    lambda v: _rows(v).update(size=True),
    lambda v: _rows(v).update(size=99),
    lambda v: _rows(v).update(sha256="A" * 64),
    lambda v: _rows(v).update(sha256=None),
    lambda v: _rows(v).update(reproducible="yes"),
]


@pytest.mark.parametrize("lie", LIES)
def test_forged_manifest_is_not_believed(out: Path, lie: Callable[[Any], object]) -> None:
    value = json.loads((out / "manifest.json").read_text())
    lie(value)
    write_sealed(out, value)
    with pytest.raises(ProtocolError):
        read_finished(INGEST, out)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_no_object_is_refused(out: Path, content: bytes) -> None:
    (out / "manifest.json").write_bytes(content)
    with pytest.raises(ProtocolError):
        read_finished(INGEST, out)


def test_changed_file_is_found_by_its_digest(out: Path) -> None:
    (out / "pool.json").write_text("[]")
    with pytest.raises(ProtocolError, match="differs"):
        read_finished(INGEST, out)


def test_changed_figure_of_the_result_is_found_by_the_seal(out: Path) -> None:
    text = (out / "manifest.json").read_text()
    assert '"images": 3' in text
    (out / "manifest.json").write_text(text.replace('"images": 3', '"images": 7'))
    with pytest.raises(ProtocolError):
        read_finished(INGEST, out)


def test_missing_file_is_found(out: Path) -> None:
    (out / "pool.json").unlink()
    with pytest.raises(ProtocolError, match="missing"):
        read_finished(INGEST, out)


def test_link_to_a_file_elsewhere_is_not_followed(out: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (out / "pool.json").unlink()
    (out / "pool.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ProtocolError, match="link"):
        read_finished(INGEST, out)


def test_folder_that_is_a_link_is_not_followed(out: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(ProtocolError, match="folder"):
        read_finished(INGEST, tmp_path / "link")


def test_fifo_does_not_block_the_server(out: Path) -> None:
    (out / "pool.json").unlink()
    os.mkfifo(out / "pool.json")
    with pytest.raises(ProtocolError):
        read_finished(INGEST, out)


def test_error_of_a_stage_is_read(tmp_path: Path) -> None:
    error = {"code": "MODEL_OPSET", "message": "m", "remedy": "r", "details": {"opset": "3"}}
    (tmp_path / "error.json").write_text(json.dumps(error))
    assert read_error(tmp_path) == error


def test_text_that_no_message_can_hold_is_made_readable(tmp_path: Path, out: Path) -> None:
    error = {"code": "MODEL_OPSET", "message": "a\ud800b", "remedy": "c\0d", "details": {"e\udcff": "f\udc00"}}
    (tmp_path / "error.json").write_text(json.dumps(error))
    expected = {"code": "MODEL_OPSET", "message": "a?b", "remedy": "c?d", "details": {"e?": "f?"}}
    assert read_error(tmp_path) == expected
    value = json.loads((out / "manifest.json").read_text())
    value["result"]["warnings"] = ["image \udcff.png is broken", "ü stays"]
    write_sealed(out, value)
    assert read_finished(INGEST, out).warnings == ("image ?.png is broken", "ü stays")


def test_no_error_file_is_no_error(tmp_path: Path) -> None:
    assert read_error(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"code": "NO_SUCH_CODE", "message": "m", "remedy": "r", "details": {}}',
        b'{"code": 5, "message": "m", "remedy": "r", "details": {}}',
        b'{"code": "MODEL_OPSET", "message": null, "remedy": "r", "details": {}}',
        b'{"code": "MODEL_OPSET", "message": "m", "remedy": "r", "details": {"a": 1}}',
        b" " * (ERROR_BYTES + 1),
    ],
)
def test_forged_error_is_not_believed(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "error.json").write_bytes(content)
    with pytest.raises(ProtocolError):
        read_error(tmp_path)


def test_endless_texts_of_an_error_are_cut(tmp_path: Path) -> None:
    error = {"code": "MODEL_OPSET", "message": "m" * 50_000, "remedy": "r", "details": {}}
    (tmp_path / "error.json").write_text(json.dumps(error))
    read = read_error(tmp_path)
    assert read is not None
    assert len(read["message"]) == 4000
