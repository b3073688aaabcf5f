"""Bytes that are not what their digest says become neither a blob nor a file of the client's."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from punnet import Client
from punnet.errors import IntegrityError
from punnet.v1 import blob_pb2
from tests.service.running_server import RunningServer, chunks, image_tar, reason


@pytest.fixture
def server(folder: Path) -> Iterator[RunningServer]:
    running = RunningServer(folder).start()
    yield running
    running.close()


def test_blob_with_other_bytes_than_announced_is_refused_and_forgotten(server: RunningServer) -> None:
    data = b"what is announced"
    other = bytes([data[0] ^ 1]) + data[1:]
    (message,) = chunks(other)
    message.digest.sha256 = hashlib.sha256(data).hexdigest()
    with pytest.raises(grpc.RpcError) as refused:
        server.blobs.UploadBlob(iter([message]))
    assert reason(refused.value)[0] == "DIGEST_MISMATCH"
    digest = blob_pb2.BlobDigest(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    status = server.blobs.GetUploadStatus(blob_pb2.GetUploadStatusRequest(digest=digest))
    assert (status.committed_size, status.complete) == (0, False)
    assert server.upload(data) == digest.sha256


def test_flipped_bit_of_a_stored_artifact_reaches_no_user(server: RunningServer) -> None:
    job = server.ingest("web", server.upload(image_tar(4)))
    server.ended(job.id)
    (stored,) = server.data.glob("pools/local/web/*/pool.json")
    whole = stored.read_bytes()
    with Client(server.address) as client:
        stored.chmod(0o600)
        stored.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(IntegrityError) as refused:
            client.download(job.id, server.folder / "out")
        assert refused.value.code == "ARTIFACT_CORRUPT"
        assert [path for path in (server.folder / "out").rglob("*") if path.suffix == ".json"] == []
        stored.write_bytes(whole)
        assert [path.read_bytes() for path in client.download(job.id, server.folder / "out")] == [whole]
