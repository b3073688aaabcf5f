"""The audit log: one line a call, nothing that a user chose freely, files of a bounded size."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from google.protobuf.message import Message

from punnet.v1 import blob_pb2, compression_pb2, job_pb2, options_pb2, pool_pb2
from server.audit import AuditLog, Record, resource_of

SHA256 = "a" * 64


@pytest.mark.parametrize(
    ("message", "resource"),
    [
        (compression_pb2.GetJobRequest(id="0" * 32), "0" * 32),
        (compression_pb2.GetJobRequest(id="<script>"), ""),
        (compression_pb2.GetJobRequest(id="x" * 65), ""),
        (pool_pb2.CreatePoolRequest(name="web"), "web"),
        (blob_pb2.DownloadBlobRequest(sha256=SHA256), SHA256),
        (blob_pb2.UploadBlobRequest(digest=blob_pb2.BlobDigest(sha256=SHA256), data=b"secret"), SHA256),
        (compression_pb2.CompressResponse(job=job_pb2.Job(id="1" * 32)), "1" * 32),
        (compression_pb2.CompressRequest(teacher=options_pb2.Teacher(display_name="our-secret")), ""),
        (compression_pb2.ListJobsRequest(page_token="abc"), ""),
    ],
)
def test_resource_is_an_id_a_digest_or_a_pools_name(message: Message, resource: str) -> None:
    assert resource_of(message) == resource


def test_line_says_who_did_what_with_which_outcome(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    record = Record(method="/punnet.v1.X/Y", peer="ipv4:1.2.3.4:5", tenant="acme", token_id="ab", outcome="OK")
    record.note(compression_pb2.GetJobRequest(id="7"))
    log.write(record)
    log.close()
    line = json.loads((tmp_path / "audit.jsonl").read_text())
    assert line.pop("time").endswith("Z")
    assert line == {
        "tenant": "acme",
        "token": "ab",
        "peer": "ipv4:1.2.3.4:5",
        "method": "/punnet.v1.X/Y",
        "resource": "7",
        "outcome": "OK",
    }
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o077 == 0


def test_full_files_are_kept_up_to_a_number_and_lines_stay_whole(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", limit=1000, kept=2)
    for number in range(40):
        log.write(Record(method=str(number), peer="p"))
    log.close()
    files = [tmp_path / name for name in ("audit.jsonl.2", "audit.jsonl.1", "audit.jsonl")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    numbers = [int(json.loads(line)["method"]) for file in files for line in file.read_text().splitlines()]
    assert numbers == list(range(numbers[0], 40))
    assert all(file.stat().st_size <= 1000 for file in files)


def test_log_of_an_earlier_server_is_gone_on_with(tmp_path: Path) -> None:
    for _ in range(2):
        log = AuditLog(tmp_path / "audit.jsonl")
        log.write(Record(method="m", peer="p"))
        log.close()
    assert len((tmp_path / "audit.jsonl").read_text().splitlines()) == 2


def test_link_in_the_logs_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match=r"symbolic|Too many"):
        AuditLog(tmp_path / "audit.jsonl")


def test_lost_line_is_logged_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")

    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        log.write(Record(method="m", peer="p"))
    assert "can't be written to the audit log" in caplog.text
    log.close()
