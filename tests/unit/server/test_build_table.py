"""Leases of builds in the tables; tests/service/test_builds.py has agents."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from punnet.errors import PunnetError
from server import build_table, job_table
from server.build_table import LOSSES
from server.job_table import BUILD_KIND, JobRow, NewJob
from server.meter import read_counts
from server.store import Store

TENANT = "local"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    Store(tmp_path / "punnet.sqlite3").close()
    with closing(sqlite3.connect(tmp_path / "punnet.sqlite3")) as connection:
        connection.row_factory = sqlite3.Row
        yield connection


def add(db: sqlite3.Connection, name: str, target: str = "rtx", agent: str = "", tenant: str = TENANT) -> None:
    spec = {"target": target, "agent": agent}
    job_table.insert_job(db, NewJob(tenant=tenant, id=name, kind=BUILD_KIND, spec=spec))


def lease(db: sqlite3.Connection, seconds: float = 60.0, **more: Any) -> tuple[str, int] | None:
    values: dict[str, Any] = {"tenant": TENANT, "agent": "a", "targets": ["rtx"], "seconds": seconds, **more}
    found = build_table.lease_oldest(db, **values)
    return None if found is None else (found[0].id, found[1].id)


def job(db: sqlite3.Connection, name: str) -> JobRow:
    found = job_table.job_by_id(db, TENANT, name)
    assert found is not None
    return found


def test_builds_are_leased_in_the_order_in_which_they_came(db: sqlite3.Connection) -> None:
    for name in ("first", "second"):
        add(db, name)
    assert [(lease(db) or ("", 0))[0] for _ in range(2)] == ["first", "second"]
    assert lease(db) is None


def test_another_tenants_builds_are_not_offered(db: sqlite3.Connection) -> None:
    add(db, "theirs", tenant="other")
    assert lease(db) is None


def test_a_build_that_loses_its_agents_fails_in_the_end(db: sqlite3.Connection) -> None:
    add(db, "deadly")
    for attempt in range(1, LOSSES + 1):
        assert job(db, "deadly").state == "QUEUED"
        assert lease(db, seconds=-1.0) is not None
        ((_, events),) = build_table.expire(db)
        assert [run.attempt for run in job(db, "deadly").runs] == list(range(1, attempt + 1))
        assert events
    ended = job(db, "deadly")
    assert ended.state == "FAILED"
    assert ended.error is not None
    assert ended.error["code"] == "STAGE_CRASHED"
    assert f"{LOSSES} agents" in ended.error["message"]


def test_a_lease_that_holds_is_not_ended(db: sqlite3.Connection) -> None:
    add(db, "alive")
    assert lease(db) is not None
    assert build_table.expire(db) == []
    assert job(db, "alive").state == "RUNNING"


def test_after_a_restart_every_lease_has_its_whole_time(db: sqlite3.Connection) -> None:
    add(db, "waiting")
    assert lease(db, seconds=-1.0) is not None
    build_table.renew_all(db, 60.0)
    assert build_table.expire(db) == []


def test_a_lease_is_no_other_number(db: sqlite3.Connection) -> None:
    add(db, "mine")
    found = lease(db)
    assert found is not None
    with pytest.raises(PunnetError) as caught:
        build_table.renew(db, TENANT, "mine", found[1] + 1, 60.0)
    assert caught.value.code == "BUILD_LEASE_LOST"


def test_waiting_builds_are_counted_and_hold_up_nobody(db: sqlite3.Connection) -> None:
    add(db, "waiting")
    counts, oldest = read_counts(db)
    assert counts[BUILD_KIND, "QUEUED"] == 1
    assert oldest is None
