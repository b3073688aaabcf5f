from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator

import grpc
import pytest

from punnet.v1 import blob_pb2
from tests.service.running_server import CHUNK_BYTES, RunningServer, chunks, reason, resident_bytes, until


def digest_of(data: bytes) -> blob_pb2.BlobDigest:
    return blob_pb2.BlobDigest(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def download(server: RunningServer, sha256: str, offset: int = 0) -> bytes:
    answers = server.blobs.DownloadBlob(blob_pb2.DownloadBlobRequest(sha256=sha256, offset=offset))
    return b"".join(answer.data for answer in answers)


def committed(server: RunningServer, data: bytes) -> int:
    return server.blobs.GetUploadStatus(blob_pb2.GetUploadStatusRequest(digest=digest_of(data))).committed_size


def refusal(server: RunningServer, messages: Iterator[blob_pb2.UploadBlobRequest]) -> str:
    with pytest.raises(grpc.RpcError) as refused:
        server.blobs.UploadBlob(messages)
    return reason(refused.value)[0]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 5 * CHUNK_BYTES])
def test_blob_comes_back_as_it_was_sent(shared_server: RunningServer, size: int) -> None:
    data = os.urandom(size)
    sha256 = shared_server.upload(data)
    assert download(shared_server, sha256) == data


def test_download_goes_on_from_an_offset(shared_server: RunningServer) -> None:
    data = os.urandom(3 * CHUNK_BYTES + 7)
    sha256 = shared_server.upload(data)
    for offset in (1, CHUNK_BYTES, len(data) - 1, len(data)):
        assert download(shared_server, sha256, offset) == data[offset:]
    with pytest.raises(grpc.RpcError) as refused:
        download(shared_server, sha256, len(data) + 1)
    assert reason(refused.value)[1]["field"] == "offset"


def test_missing_blobs_are_those_that_were_not_uploaded(shared_server: RunningServer) -> None:
    there, absent = os.urandom(100), os.urandom(100)
    shared_server.upload(there)
    other_size = blob_pb2.BlobDigest(sha256=digest_of(there).sha256, size=99)
    request = blob_pb2.FindMissingBlobsRequest(digests=[digest_of(there), digest_of(absent), other_size])
    assert list(shared_server.blobs.FindMissingBlobs(request).missing) == [digest_of(absent), other_size]


def test_unknown_blob_is_not_found(shared_server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        download(shared_server, "0" * 64)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert reason(refused.value)[0] == "BLOB_MISSING"


def test_upload_without_finish_is_no_blob_and_is_continued(shared_server: RunningServer) -> None:
    data = os.urandom(6 * CHUNK_BYTES)
    messages = list(chunks(data))
    assert refusal(shared_server, iter(messages[:3])) == "UPLOAD_OFFSET"
    assert committed(shared_server, data) == 3 * CHUNK_BYTES
    with pytest.raises(grpc.RpcError):
        download(shared_server, digest_of(data).sha256)
    shared_server.blobs.UploadBlob(chunks(data, start=3 * CHUNK_BYTES))
    assert download(shared_server, digest_of(data).sha256) == data


def test_upload_may_start_again_from_the_first_byte(shared_server: RunningServer) -> None:
    data = os.urandom(4 * CHUNK_BYTES)
    refusal(shared_server, iter(list(chunks(data))[:2]))
    shared_server.blobs.UploadBlob(chunks(data))
    assert download(shared_server, digest_of(data).sha256) == data


def test_client_killed_in_mid_upload_leaves_a_partial_and_no_blob(server: RunningServer) -> None:
    program = textwrap.dedent(f"""
        import sys, time, grpc
        sys.path.insert(0, {str(os.getcwd())!r})
        from punnet.v1 import blob_pb2_grpc
        from tests.service.running_server import chunks
        def messages():
            for index, message in enumerate(chunks(b"x" * (64 << 20))):
                if index == 20:
                    print("sent", flush=True)
                    time.sleep(60)
                yield message
        channel = grpc.insecure_channel("unix:{server.folder / "s"}")
        blob_pb2_grpc.BlobServiceStub(channel).UploadBlob(messages())
    """)
    client = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert client.stdout is not None
    assert client.stdout.readline() == b"sent\n"
    client.kill()
    client.wait()
    client.stdout.close()
    data = b"x" * (64 << 20)
    size = until(lambda: committed(server, data))
    assert 0 < size <= 20 * CHUNK_BYTES
    assert not list((server.data / "blobs" / "local").glob("[0-9a-f][0-9a-f]/*"))
    server.blobs.UploadBlob(chunks(data, start=committed(server, data)))
    assert committed(server, data) == len(data)


def test_partial_is_continued_after_kill_of_the_server(server: RunningServer) -> None:
    data = os.urandom(5 * CHUNK_BYTES)
    refusal(server, iter(list(chunks(data))[:4]))
    server.end(signal.SIGKILL)
    server.start()
    assert committed(server, data) == 4 * CHUNK_BYTES
    server.blobs.UploadBlob(chunks(data, start=4 * CHUNK_BYTES))
    assert download(server, digest_of(data).sha256) == data


def test_wrong_digest_is_refused_and_leaves_nothing(shared_server: RunningServer) -> None:
    data = os.urandom(1000)
    (message,) = chunks(data)
    message.digest.sha256 = "1" * 64
    assert refusal(shared_server, iter([message])) == "DIGEST_MISMATCH"
    status = shared_server.blobs.GetUploadStatus(blob_pb2.GetUploadStatusRequest(digest=message.digest))
    assert (status.committed_size, status.complete) == (0, False)


def test_corrupt_chunk_is_refused_and_not_committed(shared_server: RunningServer) -> None:
    data = os.urandom(4 * CHUNK_BYTES)
    messages = list(chunks(data))
    messages[3].crc32c ^= 1
    assert refusal(shared_server, iter(messages)) == "CHUNK_CORRUPT"
    size = committed(shared_server, data)
    assert size <= 3 * CHUNK_BYTES
    shared_server.blobs.UploadBlob(chunks(data, start=size))
    assert download(shared_server, digest_of(data).sha256) == data


def test_gap_in_the_offsets_is_refused(shared_server: RunningServer) -> None:
    messages = list(chunks(os.urandom(4 * CHUNK_BYTES)))
    assert refusal(shared_server, iter([messages[0], messages[2]])) == "UPLOAD_OFFSET"


def test_chunk_above_one_mebibyte_is_refused(shared_server: RunningServer) -> None:
    message = blob_pb2.UploadBlobRequest(digest=digest_of(b"a" * (2 << 20)), data=b"a" * ((1 << 20) + 1))
    assert refusal(shared_server, iter([message])) == "REQUEST_INVALID"


def test_more_bytes_than_announced_are_refused(shared_server: RunningServer) -> None:
    message = blob_pb2.UploadBlobRequest(digest=digest_of(os.urandom(10)), data=b"a" * 11, finish=True)
    assert refusal(shared_server, iter([message])) == "REQUEST_INVALID"


def test_upload_that_is_there_already_succeeds_at_once(shared_server: RunningServer) -> None:
    data = os.urandom(1000)
    shared_server.upload(data)
    first = blob_pb2.UploadBlobRequest(digest=digest_of(data))
    assert shared_server.blobs.UploadBlob(iter([first])).committed_size == 1000


def test_fifth_upload_at_once_is_refused(server: RunningServer) -> None:
    release = threading.Event()
    began = threading.Semaphore(0)

    def slow(data: bytes) -> Iterator[blob_pb2.UploadBlobRequest]:
        first, *others = chunks(data)
        yield first
        began.release()
        release.wait(30)
        yield from others

    contents = [os.urandom(2 * CHUNK_BYTES) for _ in range(4)]
    uploads = [server.blobs.UploadBlob.future(slow(data)) for data in contents]
    for _ in contents:
        assert began.acquire(timeout=10)
    until(lambda: len(list((server.data / "blobs" / "local").glob("partial/*"))) == 4)
    assert refusal(server, chunks(os.urandom(100))) == "QUOTA"
    release.set()
    assert [upload.result(30).committed_size for upload in uploads] == [2 * CHUNK_BYTES] * 4
    server.upload(os.urandom(100))


def test_large_upload_keeps_the_server_small(server: RunningServer) -> None:
    part = os.urandom(CHUNK_BYTES)
    data = part * 512
    server.blobs.UploadBlob(chunks(data))
    assert resident_bytes(server.pid) < 200 << 20


@pytest.mark.parametrize("sha256", ["", "A" * 64, "0" * 63, "../" + "0" * 61])
def test_digest_that_is_none_is_refused(shared_server: RunningServer, sha256: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        download(shared_server, sha256)
    assert reason(refused.value)[0] == "REQUEST_INVALID"
