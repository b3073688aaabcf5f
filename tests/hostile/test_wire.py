"""Messages that are small on the wire and large behind it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from punnet.v1 import compression_pb2
from tests.service.running_server import RunningServer, resident_bytes

BOMB_BYTES = 64 << 20
GROWTH_BYTES = 50 << 20


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("s")).start()
    yield running
    running.close()


def test_compressed_message_is_held_to_the_size_that_it_unpacks_to(server: RunningServer) -> None:
    def ask(size: int) -> grpc.StatusCode:
        request = compression_pb2.GetJobRequest(id="a" * size)
        with pytest.raises(grpc.RpcError) as caught:
            server.compression.GetJob(request, compression=grpc.Compression.Gzip)
        code: grpc.StatusCode = caught.value.code()
        return code

    assert ask(32) == grpc.StatusCode.NOT_FOUND
    before = resident_bytes(server.pid)
    assert ask(BOMB_BYTES) == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert resident_bytes(server.pid) - before < GROWTH_BYTES
    assert ask(32) == grpc.StatusCode.NOT_FOUND
