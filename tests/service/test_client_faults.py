"""The client on a line that breaks: a real gRPC server with the contract's blobs and watch that fails on demand."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import ServicerContext
from grpc_status import rpc_status

from punnet.aio import AsyncClient
from punnet.blobs import Transfer, download, upload_missing
from punnet.connection import HEALTH_METHOD, SERVING, Connection
from punnet.errors import IntegrityError, NotFound, ServerUnavailable
from punnet.transfer import CHUNK_BYTES, Blob, blob_of, chunks, crc32c
from punnet.v1 import blob_pb2, blob_pb2_grpc, compression_pb2, compression_pb2_grpc, job_pb2

DATA = bytes(range(256)) * (5 * CHUNK_BYTES // 256)
Context = ServicerContext[Any, Any]


class Line(blob_pb2_grpc.BlobServiceServicer, compression_pb2_grpc.CompressionServiceServicer):
    """Keeps the contract, but drops streams after so many messages, and damages so many chunks."""

    def __init__(self) -> None:
        self.stored = bytearray()
        self.whole = False
        self.drop_after: list[int] = []
        self.damage = 0
        self.refuse = False
        self.offsets: list[int] = []
        self.sizes: list[int] = []
        self.after_seqs: list[int] = []

    async def FindMissingBlobs(  # noqa: N802
        self, request: blob_pb2.FindMissingBlobsRequest, context: Context
    ) -> blob_pb2.FindMissingBlobsResponse:
        return blob_pb2.FindMissingBlobsResponse(missing=[] if self.whole else request.digests)

    async def GetUploadStatus(  # noqa: N802
        self, request: blob_pb2.GetUploadStatusRequest, context: Context
    ) -> blob_pb2.GetUploadStatusResponse:
        return blob_pb2.GetUploadStatusResponse(committed_size=len(self.stored), complete=self.whole)

    async def UploadBlob(  # noqa: N802
        self, requests: AsyncIterator[blob_pb2.UploadBlobRequest], context: Context
    ) -> blob_pb2.UploadBlobResponse:
        limit = self.drop_after.pop(0) if self.drop_after else None
        taken = 0
        digest = None
        async for message in requests:
            if taken == limit:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "dropped")
            if taken == 0:
                digest = message.digest
                self.offsets.append(message.offset)
                assert digest.sha256
            else:
                assert not message.HasField("digest")
            assert message.offset == len(self.stored)
            assert message.crc32c == crc32c(message.data)
            self.stored += message.data
            self.sizes.append(len(message.data))
            taken += 1
            if message.finish:
                assert digest is not None
                assert hashlib.sha256(self.stored).hexdigest() == digest.sha256
                self.whole = True
                return blob_pb2.UploadBlobResponse(committed_size=len(self.stored))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "no finish")
        raise AssertionError("unreachable")

    async def DownloadBlob(  # noqa: N802
        self, request: blob_pb2.DownloadBlobRequest, context: Context
    ) -> AsyncIterator[blob_pb2.DownloadBlobResponse]:
        self.offsets.append(request.offset)
        limit = self.drop_after.pop(0) if self.drop_after else None
        for sent, chunk in enumerate(chunks(bytes(self.stored), request.offset)):
            if sent == limit:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "dropped")
            data = chunk.data
            if self.damage and sent == 1:
                self.damage -= 1
                data = data[:-1] + b"?"
            yield blob_pb2.DownloadBlobResponse(
                offset=chunk.offset, data=data, crc32c=chunk.crc32c, size=len(self.stored)
            )

    async def GetJob(  # noqa: N802
        self, request: compression_pb2.GetJobRequest, context: Context
    ) -> compression_pb2.GetJobResponse:
        if self.refuse:
            packed = any_pb2.Any()
            packed.Pack(error_details_pb2.ErrorInfo(reason="JOB_NOT_FOUND", domain="punnet", metadata={"job": "j"}))
            status = status_pb2.Status(code=grpc.StatusCode.NOT_FOUND.value[0], message="No job.", details=[packed])
            await context.abort_with_status(rpc_status.to_status(status))
        return compression_pb2.GetJobResponse(job=job_pb2.Job(id=request.id, state=job_pb2.JOB_STATE_SUCCEEDED))

    async def WatchJob(  # noqa: N802
        self, request: compression_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[compression_pb2.WatchJobResponse]:
        self.after_seqs.append(request.after_seq)
        limit = self.drop_after.pop(0) if self.drop_after else None
        yield compression_pb2.WatchJobResponse(snapshot=job_pb2.Job(id=request.id))
        yield compression_pb2.WatchJobResponse(heartbeat=compression_pb2.Heartbeat())
        for sent, seq in enumerate(range(request.after_seq + 1, 11)):
            if sent == limit:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "dropped")
            state = job_pb2.JOB_STATE_SUCCEEDED if seq == 10 else job_pb2.JOB_STATE_RUNNING
            skipped = self.damage and seq == 4
            if skipped:
                self.damage -= 1
                continue
            yield compression_pb2.WatchJobResponse(event=job_pb2.JobEvent(seq=seq, state=state))
            yield compression_pb2.WatchJobResponse(event=job_pb2.JobEvent(seq=seq, state=state))  # repeated


Work = Callable[[Line, str], Awaitable[None]]


def on_line(work: Work, socket: Path) -> None:
    """Runs the work against a fresh server."""

    async def serve() -> None:
        line = Line()  # type: ignore[abstract]  # of CompressionService, what these tests call
        server = grpc.aio.server()
        blob_pb2_grpc.add_BlobServiceServicer_to_server(line, server)
        compression_pb2_grpc.add_CompressionServiceServicer_to_server(line, server)

        async def check(request: bytes, context: Context) -> bytes:
            return SERVING

        service, method = HEALTH_METHOD.strip("/").split("/")
        health = grpc.method_handlers_generic_handler(service, {method: grpc.unary_unary_rpc_method_handler(check)})
        server.add_generic_rpc_handlers((health,))
        address = f"unix:{socket}"
        server.add_insecure_port(address)
        await server.start()
        try:
            await asyncio.wait_for(work(line, address), 30)
        finally:
            await server.stop(None)

    asyncio.run(serve())


def artifact(path: str = "student.onnx", data: bytes = DATA) -> job_pb2.Artifact:
    return job_pb2.Artifact(path=path, sha256=hashlib.sha256(data).hexdigest(), size=len(data))


async def upload(address: str, blob: Blob, seen: list[Transfer] | None = None) -> None:
    connection = Connection(address, patience_seconds=2.0)
    try:
        await upload_missing(connection, [blob], seen.append if seen is not None else None)
    finally:
        await connection.close()


async def fetch(address: str, folder: Path, wanted: job_pb2.Artifact) -> list[Path]:
    connection = Connection(address, patience_seconds=2.0)
    try:
        return await download(connection, [wanted], folder)
    finally:
        await connection.close()


def test_dropped_upload_goes_on_where_it_broke(tmp_path: Path) -> None:
    (tmp_path / "teacher.onnx").write_bytes(DATA)

    async def work(line: Line, address: str) -> None:
        line.drop_after = [2, 1]
        seen: list[Transfer] = []
        await upload(address, blob_of(tmp_path / "teacher.onnx"), seen)
        assert line.whole
        assert bytes(line.stored) == DATA
        assert line.offsets == [0, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES]
        assert sum(line.sizes) == len(DATA)  # no byte was sent twice
        assert seen[-1] == Transfer(done=len(DATA), total=len(DATA))

    on_line(work, tmp_path / "s")


def test_upload_that_only_lacks_its_last_word_sends_no_bytes(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        line.stored = bytearray(DATA)
        await upload(address, blob_of(DATA))
        assert line.whole
        assert line.sizes == [0]

    on_line(work, tmp_path / "s")


def test_empty_blob_is_uploaded(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        await upload(address, blob_of(b""))
        assert line.whole

    on_line(work, tmp_path / "s")


def test_blob_that_is_there_is_not_sent(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        line.stored, line.whole = bytearray(DATA), True
        await upload(address, blob_of(DATA))
        assert line.sizes == []

    on_line(work, tmp_path / "s")


@pytest.mark.parametrize(("first", "later"), [(DATA, DATA[:-10]), (DATA[:-10], DATA)])
def test_file_that_changes_meanwhile_is_not_finished(tmp_path: Path, first: bytes, later: bytes) -> None:
    file = tmp_path / "teacher.onnx"
    file.write_bytes(first)
    blob = blob_of(file)
    file.write_bytes(later)

    async def work(line: Line, address: str) -> None:
        with pytest.raises(IntegrityError, match=r"teacher\.onnx has .* bytes") as caught:
            await upload(address, blob)
        assert caught.value.code == "DIGEST_MISMATCH"
        assert not line.whole

    on_line(work, tmp_path / "s")


def test_upload_gives_up_when_nothing_comes_through(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        line.drop_after = [0] * 100
        with pytest.raises(ServerUnavailable):
            await upload(address, blob_of(DATA))

    on_line(work, tmp_path / "s")


def test_dropped_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        line.stored = bytearray(DATA)
        line.drop_after = [3, 1]
        assert await fetch(address, tmp_path / "out", artifact("a/b.onnx")) == [tmp_path / "out" / "a" / "b.onnx"]
        assert (tmp_path / "out" / "a" / "b.onnx").read_bytes() == DATA
        assert line.offsets == [0, 3 * CHUNK_BYTES, 4 * CHUNK_BYTES]

    on_line(work, tmp_path / "s")


def test_damaged_chunk_is_asked_for_again(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        line.stored, line.damage = bytearray(DATA), 1
        await fetch(address, tmp_path / "out", artifact())
        assert (tmp_path / "out" / "student.onnx").read_bytes() == DATA
        assert line.offsets == [0, CHUNK_BYTES]

    on_line(work, tmp_path / "s")


def test_line_that_always_damages_ends_in_an_integrity_error(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        line.stored, line.damage = bytearray(DATA), 100
        with pytest.raises(IntegrityError) as caught:
            await fetch(address, tmp_path / "out", artifact())
        assert caught.value.code == "CHUNK_CORRUPT"
        assert list((tmp_path / "out").iterdir()) == []

    on_line(work, tmp_path / "s")


@pytest.mark.parametrize("stored", [DATA[:-1] + b"?", DATA[:-1], DATA + b"?"])
def test_server_with_other_bytes_than_announced_gives_no_file(tmp_path: Path, stored: bytes) -> None:
    async def work(line: Line, address: str) -> None:
        line.stored = bytearray(stored)  # every chunk has a right CRC32C
        with pytest.raises(IntegrityError) as caught:
            await fetch(address, tmp_path / "out", artifact())
        assert caught.value.code == "ARTIFACT_CORRUPT"
        assert list((tmp_path / "out").iterdir()) == []

    on_line(work, tmp_path / "s")


def test_file_that_is_there_is_not_fetched(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "student.onnx").write_bytes(DATA)

    async def work(line: Line, address: str) -> None:
        await fetch(address, tmp_path / "out", artifact())
        assert line.offsets == []

    on_line(work, tmp_path / "s")


def test_two_artifacts_of_one_path_are_refused(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        connection = Connection(address)
        with pytest.raises(IntegrityError, match="two artifacts"):
            await download(connection, [artifact(), artifact()], tmp_path / "out")
        await connection.close()

    on_line(work, tmp_path / "s")


def test_broken_watch_brings_every_event_once_and_in_order(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        line.drop_after = [3, 0, 2]
        async with AsyncClient(address) as client:
            updates = [update async for update in client.watch("j")]
        assert [u.event.seq for u in updates if u.WhichOneof("update") == "event"] == list(range(1, 11))
        assert line.after_seqs == [0, 3, 3, 5]
        assert "heartbeat" not in {u.WhichOneof("update") for u in updates}

    on_line(work, tmp_path / "s")


def test_event_lost_on_the_way_is_asked_for_again(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        line.damage = 1
        async with AsyncClient(address) as client:
            updates = [update async for update in client.watch("j", after_seq=1)]
        assert [u.event.seq for u in updates if u.WhichOneof("update") == "event"] == list(range(2, 11))
        assert line.after_seqs == [1, 3]

    on_line(work, tmp_path / "s")


def test_watch_of_a_job_whose_events_are_known_ends(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        async with AsyncClient(address) as client:
            updates = [update async for update in client.watch("j", after_seq=10)]
        assert [u.WhichOneof("update") for u in updates] == ["snapshot"]

    on_line(work, tmp_path / "s")


def test_nobody_at_the_address_is_said_at_once(tmp_path: Path) -> None:
    async def work() -> None:
        async with AsyncClient(f"unix:{tmp_path}/nobody"):
            raise AssertionError("connected to nothing")

    with pytest.raises(ServerUnavailable, match="nobody"):
        asyncio.run(work())


def test_closed_client_says_how_to_use_it() -> None:
    with pytest.raises(RuntimeError, match="with"):
        asyncio.run(AsyncClient("unix:/x").jobs())


def test_code_of_the_server_arrives_as_its_exception(tmp_path: Path) -> None:
    async def work(line: Line, address: str) -> None:
        line.refuse = True
        async with AsyncClient(address) as client:
            with pytest.raises(NotFound) as caught:
                await client.job("j")
        assert caught.value.details == {"job": "j"}

    on_line(work, tmp_path / "s")
