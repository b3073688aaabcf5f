"""A file as the wire carries it, and what storing it costs without any server."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from punnet.transfer import CHUNK_BYTES
from punnet.v1 import blob_pb2

MIB = 1 << 20


def numbered_file(path: Path, mib: int, number: int) -> str:
    """Write a file whose content no other number has; its sha256."""
    block = random.Random(number).randbytes(MIB)
    known = hashlib.sha256()
    with path.open("wb") as file:
        for position in range(mib):
            part = position.to_bytes(8, "big") + block[8:]
            known.update(part)
            file.write(part)
    return known.hexdigest()


def file_chunks(path: Path) -> Iterator[bytes]:
    """A file in chunks as the wire carries them."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def time_sink(source: Path, target: Path) -> float:
    """Seconds to store the file without a server."""
    started = time.monotonic()
    known = hashlib.sha256()
    with target.open("wb", buffering=0) as file:
        for chunk in file_chunks(source):
            google_crc32c.value(chunk)
            known.update(chunk)
            file.write(chunk)
        os.fsync(file.fileno())
    seconds = time.monotonic() - started
    target.unlink()
    return seconds


def upload_messages(source: Path, sha256: str) -> Iterator[blob_pb2.UploadBlobRequest]:
    """The messages of an upload; the digest is known before, as a client's own pass over the file is no transport."""
    size = source.stat().st_size
    offset = 0
    for chunk in file_chunks(source):
        digest = blob_pb2.BlobDigest(sha256=sha256, size=size) if offset == 0 else None
        end = offset + len(chunk)
        yield blob_pb2.UploadBlobRequest(
            digest=digest, offset=offset, data=chunk, crc32c=google_crc32c.value(chunk), finish=end == size
        )
        offset = end
