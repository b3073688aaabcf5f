"""Rates: a burst of the limit, then evenly; each tenant has its own."""

from __future__ import annotations

import contextlib

import pytest

from punnet.errors import PunnetError
from server.admission import Failures
from server.quotas import Quotas, Rate, unlimited


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def admitted(rate: Rate, key: str, tries: int) -> int:
    count = 0
    for _ in range(tries):
        with contextlib.suppress(PunnetError):
            rate.take(key)
            count += 1
    return count


def test_burst_is_the_limit_and_each_tenants_own() -> None:
    rate = Rate("calls_a_minute", 60, Clock())
    assert admitted(rate, "a", 100) == 60
    assert admitted(rate, "b", 100) == 60


def test_calls_come_back_evenly_up_to_the_limit() -> None:
    clock = Clock()
    rate = Rate("calls_a_minute", 60, clock)
    admitted(rate, "a", 60)
    clock.now += 2.5
    assert admitted(rate, "a", 10) == 2
    clock.now += 3600
    assert admitted(rate, "a", 100) == 60


def test_refusal_says_when_the_next_call_is_admitted() -> None:
    clock = Clock()
    rate = Rate("calls_a_minute", 6, clock)
    admitted(rate, "a", 6)
    clock.now += 4
    with pytest.raises(PunnetError) as refused:
        rate.take("a")
    assert refused.value.details == {"quota": "calls_a_minute", "limit": "6", "retry_seconds": "6"}
    clock.now += 6
    rate.take("a")


def test_no_limit_admits_all() -> None:
    assert admitted(Rate("calls_a_minute", None, Clock()), "a", 1000) == 1000
    assert unlimited(Quotas(queued_jobs=3)) == Quotas(
        storage_bytes=None,
        running_jobs=None,
        queued_jobs=3,
        calls_a_minute=None,
        transfers_a_minute=None,
        open_calls=None,
    )


def test_failures_of_a_peer_end_in_a_wait_and_begin_anew_a_minute_later() -> None:
    clock = Clock()
    failures = Failures(10, clock)
    assert [failures.note("ipv4:1.2.3.4").code for _ in range(12)] == ["TOKEN_INVALID"] * 10 + ["QUOTA"] * 2
    assert failures.note("ipv4:5.6.7.8").code == "TOKEN_INVALID"
    clock.now += 50
    assert failures.note("ipv4:1.2.3.4").details["retry_seconds"] == "10"
    clock.now += 10
    assert failures.note("ipv4:1.2.3.4").code == "TOKEN_INVALID"


def test_peers_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.admission.PEERS", 3)
    failures = Failures(1, Clock())
    for peer in ("a", "b", "c", "d", "a"):
        assert failures.note(peer).code == "TOKEN_INVALID"
    assert failures.note("d").code == "QUOTA"
