"""No message of any method makes the server fail: every refusal is of the caller's making, and the server serves on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.hostile.rpc_fuzz import OPTIONS, Fuzz, Known, message_of, requests
from tests.service.accounts import AccountsServer, methods
from tests.service.running_server import resident_bytes

SEED = 20261127
GROWTH_BYTES = 50 << 20


@pytest.fixture
def fuzz(folder: Path) -> Iterator[Fuzz]:
    server = AccountsServer(folder, options=OPTIONS)
    server.start()
    yield Fuzz(server, SEED)
    server.close()


@pytest.mark.parametrize("calls", [500, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_random_and_boundary_messages_end_in_typed_refusals(fuzz: Fuzz, calls: int) -> None:
    before = resident_bytes(fuzz.server.pid)
    findings = [finding for number in range(calls) if (finding := fuzz.call(number))]
    assert findings == []
    assert fuzz.log_errors() == []
    assert fuzz.statuses["OK"] > calls / 20
    assert fuzz.statuses["INVALID_ARGUMENT"] > calls / 5
    health = health_pb2_grpc.HealthStub(fuzz.server.channel())
    assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == health_pb2.HealthCheckResponse.SERVING
    assert resident_bytes(fuzz.server.pid) - before < GROWTH_BYTES


def test_calls_follow_from_seed_and_number() -> None:
    for method in methods():
        calls = [[requests(method, SEED, number, Known.nothing()) for number in range(20)] for _ in range(2)]
        assert calls[0] == calls[1]
        assert len({tuple(sent) for sent in calls[0]}) > 1


def test_every_kind_of_field_of_the_contract_is_made() -> None:
    chance = random.Random(SEED)
    for method in methods():
        made = [message_of(method.input_type, chance, Known.nothing()) for _ in range(50)]
        said = {field.name for message in made for field, _ in message.ListFields()}
        assert said == {field.name for field in method.input_type.fields}
