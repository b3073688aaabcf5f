"""Chunks, digests, artifact paths and files that appear only when they are right."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punnet.errors import IntegrityError, PunnetError
from punnet.transfer import (
    CHUNK_BYTES,
    Chunk,
    VerifiedFile,
    artifact_path,
    blob_of,
    chunks,
    crc32c,
    file_sha256,
    is_there,
)


def verified(target: Path, data: bytes) -> VerifiedFile:
    return VerifiedFile(target, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def test_crc32c_gives_the_check_value_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4: the Castagnoli check value
    assert crc32c(b"") == 0


@given(st.binary(max_size=200), st.integers(0, 220))
def test_chunks_from_any_offset_are_the_rest(data: bytes, offset: int) -> None:
    assert b"".join(c.data for c in chunks(data, offset)) == data[offset:]


def test_chunks_of_a_file_and_of_its_bytes_are_equal(tmp_path: Path) -> None:
    data = os.urandom(2 * CHUNK_BYTES + 5)  # three chunks, the last one shorter
    (tmp_path / "f").write_bytes(data)
    assert list(chunks(tmp_path / "f")) == list(chunks(data))
    assert [c.offset for c in chunks(data)] == [0, CHUNK_BYTES, 2 * CHUNK_BYTES]
    assert list(chunks(tmp_path / "f", CHUNK_BYTES)) == list(chunks(data))[1:]


def test_blob_is_named_by_sha256_and_size(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    blob = blob_of(tmp_path / "f")
    # FIPS 180-2, appendix B.1
    assert blob.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert blob.size == 3
    assert blob_of(b"abc").sha256 == blob.sha256 == file_sha256(tmp_path / "f")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../up", "a/../../up", "a//b", "", ".", "a/./b", "a\\..\\b", "C:x", "a\0b", "a/"]
)
def test_artifact_paths_that_are_not_plain_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        artifact_path(tmp_path, path)
    assert caught.value.code == "ARTIFACT_CORRUPT"


def test_artifact_path_goes_below_the_folder(tmp_path: Path) -> None:
    assert artifact_path(tmp_path, "engines/rtx.engine") == tmp_path / "engines" / "rtx.engine"


def test_artifact_path_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "engines").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="link"):
        artifact_path(tmp_path / "out", "engines/rtx.engine")


def test_artifact_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").symlink_to("/etc/hostname")
    with pytest.raises(IntegrityError):
        artifact_path(tmp_path, "report.json")


def test_verified_file_appears_when_it_is_finished(tmp_path: Path) -> None:
    data = bytes(CHUNK_BYTES + 5)
    target = tmp_path / "deep" / "student.onnx"
    file = verified(target, data)
    for chunk in chunks(data):
        file.write(chunk)
        assert not target.exists()
    file.finish()
    assert target.read_bytes() == data
    assert list(target.parent.iterdir()) == [target]


def test_verified_file_refuses_a_damaged_chunk_and_takes_the_right_one_after_it(tmp_path: Path) -> None:
    file = verified(tmp_path / "f", b"right")
    with pytest.raises(PunnetError) as caught:
        file.write(Chunk(offset=0, data=b"wrong", crc32c=crc32c(b"right")))
    assert caught.value.code == "CHUNK_CORRUPT"
    assert file.offset == 0
    file.write(Chunk(offset=0, data=b"right", crc32c=crc32c(b"right")))
    file.finish()
    assert (tmp_path / "f").read_bytes() == b"right"


def test_verified_file_refuses_a_chunk_from_elsewhere(tmp_path: Path) -> None:
    file = verified(tmp_path / "f", b"abcdef")
    with pytest.raises(PunnetError, match="byte 0"):
        file.write(Chunk(offset=3, data=b"def", crc32c=crc32c(b"def")))
    file.discard()


def test_verified_file_with_another_digest_never_appears(tmp_path: Path) -> None:
    file = verified(tmp_path / "f", b"abc")
    file.write(Chunk(offset=0, data=b"abd", crc32c=crc32c(b"abd")))  # damaged before its CRC32C was taken
    with pytest.raises(IntegrityError) as caught:
        file.finish()
    file.discard()
    assert caught.value.code == "ARTIFACT_CORRUPT"
    assert list(tmp_path.iterdir()) == []


def test_verified_file_takes_no_more_than_announced(tmp_path: Path) -> None:
    file = verified(tmp_path / "f", b"abc")
    with pytest.raises(IntegrityError, match="more than the announced 3"):
        file.write(Chunk(offset=0, data=b"abcd", crc32c=crc32c(b"abcd")))
    file.discard()


def test_verified_file_cut_short_never_appears(tmp_path: Path) -> None:
    file = verified(tmp_path / "f", b"abc")
    with pytest.raises(IntegrityError):
        file.finish()
    file.discard()
    assert list(tmp_path.iterdir()) == []


def test_file_with_the_same_content_is_there(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    digest = file_sha256(tmp_path / "f")
    assert is_there(tmp_path / "f", sha256=digest, size=3)
    assert not is_there(tmp_path / "f", sha256=digest, size=4)
    assert not is_there(tmp_path / "g", sha256=digest, size=3)
    (tmp_path / "f").write_bytes(b"abd")
    assert not is_there(tmp_path / "f", sha256=digest, size=3)
