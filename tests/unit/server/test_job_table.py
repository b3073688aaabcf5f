from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from punnet.errors import PunnetError
from server import job_table, pool_table
from server.job_table import ArtifactRow, JobRow, NewJob, StageRun
from server.pool_table import PoolRow
from server.schema import SchemaMismatch
from server.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "db.sqlite3")
    yield opened
    opened.close()


def write(store: Store, function: Any, *arguments: Any) -> Any:
    return asyncio.run(store.write(function, *arguments))


def new_job(store: Store, job_id: str = "a", kind: str = "compress", tenant: str = "local", **fields: Any) -> None:
    spec = fields.pop("spec", {})
    write(store, job_table.insert_job, NewJob(tenant=tenant, id=job_id, kind=kind, spec=spec, **fields))


def claimed(store: Store, kind: str = "compress") -> JobRow:
    job, _ = write(store, job_table.claim, (kind,))
    assert isinstance(job, JobRow)
    return job


def test_oldest_queued_job_of_the_kind_is_claimed_once(store: Store) -> None:
    new_job(store, "a", "ingest")
    new_job(store, "b")
    new_job(store, "c")
    assert [claimed(store).id, claimed(store).id] == ["b", "c"]
    assert write(store, job_table.claim, ("compress",)) is None


def test_jobs_of_a_tenant_with_enough_running_are_passed_over(store: Store) -> None:
    for job_id, kind, tenant in (("a", "compress", "busy"), ("b", "compress", "busy"), ("c", "compress", "other")):
        new_job(store, job_id, kind, tenant)
    new_job(store, "d", "ingest", "busy")

    def claim(kind: str) -> str | None:
        found = write(store, job_table.claim, (kind,), 1)
        return found[0].id if found else None

    assert [claim("compress"), claim("compress"), claim("compress")] == ["a", "c", None]
    assert claim("ingest") == "d"  # short jobs have slots of their own
    write(store, job_table.request_cancel, "busy", "a")
    assert claim("compress") is None  # its processes are not gone yet
    write(store, job_table.finish, write(store, job_table.job_by_id, "busy", "a"), "FAILED", None, ())
    assert claim("compress") == "b"


def test_spec_is_read_with_the_claim_only(store: Store) -> None:
    spec = {"images": {"files": [{"label": "cat", "image": {"sha256": "0" * 64}}] * 1000}}
    new_job(store, "a", spec=spec, request_id="r")
    assert claimed(store).spec == spec
    assert write(store, job_table.spec_of, "local", "a") == spec
    assert write(store, job_table.job_by_id, "local", "a").spec == {}
    assert write(store, job_table.jobs_before, "local", None, 1)[0].spec == {}


def test_active_jobs_are_those_that_have_not_ended(store: Store) -> None:
    for job_id in ("a", "b", "c"):
        new_job(store, job_id)
    write(store, job_table.finish, claimed(store), "FAILED", None, ())
    claimed(store)
    assert write(store, job_table.active_ids) == {("local", "b"), ("local", "c")}


def test_events_are_numbered_without_gaps_in_each_job(store: Store) -> None:
    new_job(store, "a")
    new_job(store, "b")
    for _ in range(3):
        write(store, job_table.add_event, "local", "a", "warning", {"text": "x"})
    events = write(store, job_table.events_after, "local", "a", 1, 10)
    assert [event.seq for event in events] == [2, 3, 4]
    assert [event.seq for event in write(store, job_table.events_after, "local", "b", 0, 10)] == [1]


def test_end_of_an_older_claim_is_refused(store: Store) -> None:
    new_job(store)
    first = claimed(store)
    write(store, job_table.requeue, first)
    second = claimed(store)
    assert second.epoch == first.epoch + 1
    assert write(store, job_table.finish, first, "SUCCEEDED", None, ()) == []
    with pytest.raises(KeyError):
        write(store, job_table.put_run, first, StageRun(name="intake", attempt=1, state="RUNNING", key="k"))
    events = write(store, job_table.finish, second, "SUCCEEDED", None, ())
    assert events[-1].body == {"state": "SUCCEEDED"}


def test_job_being_cancelled_ends_cancelled_whatever_its_stage_did(store: Store) -> None:
    new_job(store)
    job = claimed(store)
    write(store, job_table.request_cancel, "local", "a")
    artifact = ArtifactRow(path="x", sha256="0", size=1, reproducible=True, folder="f")
    write(store, job_table.finish, job, "SUCCEEDED", None, (artifact,))
    row = write(store, job_table.job_by_id, "local", "a")
    assert (row.state, row.artifacts) == ("CANCELLED", ())


def test_failure_announces_its_error_before_its_state(store: Store) -> None:
    new_job(store)
    error = {"code": "INTERNAL", "message": "m", "remedy": "r", "stage": "", "details": {}}
    events = write(store, job_table.finish, claimed(store), "FAILED", error, ())
    assert [event.kind for event in events] == ["error", "state"]
    assert write(store, job_table.job_by_id, "local", "a").error == error


def test_runs_that_were_alive_are_lost_after_a_restart(store: Store) -> None:
    new_job(store)
    job = claimed(store)
    write(store, job_table.put_run, job, StageRun(name="intake", attempt=1, state="RUNNING", key="k"))
    write(store, job_table.requeue, write(store, job_table.job_by_id, "local", "a"))
    row = write(store, job_table.job_by_id, "local", "a")
    assert (row.state, row.runs[0].state) == ("QUEUED", "LOST")


def test_warning_is_not_repeated(store: Store) -> None:
    new_job(store)
    job = claimed(store)
    assert len(write(store, job_table.add_warning, job, "intake", "few")) == 1
    assert write(store, job_table.add_warning, job, "intake", "few") == []
    assert write(store, job_table.job_by_id, "local", "a").warnings == ("few",)


def test_same_request_id_of_two_tenants_makes_two_jobs(store: Store) -> None:
    new_job(store, "a", request_id="r")
    new_job(store, "a", request_id="r", tenant="other")
    with pytest.raises(sqlite3.IntegrityError):
        new_job(store, "b", request_id="r")


def test_tenant_sees_its_own_rows_only(store: Store) -> None:
    new_job(store, "a", tenant="other")
    assert write(store, job_table.job_by_id, "local", "a") is None
    assert write(store, job_table.jobs_before, "local", None, 10) == []
    assert write(store, job_table.events_after, "local", "a", 0, 10) == []


def test_deleted_job_names_the_stages_that_no_other_job_uses(store: Store) -> None:
    for job_id, keys in (("a", ("shared", "own")), ("b", ("shared",))):
        new_job(store, job_id)
        job = claimed(store)
        for index, key in enumerate(keys):
            write(store, job_table.put_run, job, StageRun(name=f"s{index}", attempt=1, state="SUCCEEDED", key=key))
    assert write(store, job_table.delete_job, "local", "a") == ["own"]
    assert write(store, job_table.events_after, "local", "a", 0, 10) == []


def pool_row(sha256: str, job_id: str = "a") -> PoolRow:
    figures = dict.fromkeys(("images", "shards", "size", "created"), 1)
    figures |= dict.fromkeys(("bad_images", "duplicates", "near_duplicates", "short_side", "quality"), 0)
    return PoolRow(tenant="local", name="web", job_id=job_id, ready=False, sha256=sha256, **figures)


def refusal(store: Store, function: Any, *arguments: Any) -> str:
    with pytest.raises(PunnetError) as refused:
        write(store, function, *arguments)
    return refused.value.code


def test_name_of_a_pool_is_taken_by_a_waiting_ingest_and_by_a_finished_pool(store: Store) -> None:
    check = (store, pool_table.check_pool, "local", "ingest", {"name": "web"})
    write(*check)
    new_job(store, "a", "ingest", spec={"name": "web"})
    assert refusal(*check) == "POOL_EXISTS"
    job = claimed(store, "ingest")
    write(store, pool_table.put_pool, pool_row("0"))
    assert write(store, pool_table.pool_by_name, "local", "web") is None
    write(store, job_table.finish, job, "FAILED", None, ())
    write(*check)
    write(store, pool_table.mark_ready, pool_row("0"))
    assert refusal(*check) == "POOL_EXISTS"


def test_appended_version_takes_the_place_of_the_one_before(store: Store) -> None:
    for sha256, job_id in (("0", "a"), ("1", "b")):
        write(store, pool_table.put_pool, pool_row(sha256, job_id))
        found = write(store, pool_table.pool_by_name, "local", "web")
        assert found is None or found.sha256 == "0"
        write(store, pool_table.mark_ready, pool_row(sha256))
    found = write(store, pool_table.pool_by_name, "local", "web")
    assert (found.sha256, found.job_id, found.ready) == ("1", "b", True)
    assert write(store, pool_table.versions_needed) == {("local", "web", "1")}


def test_version_that_a_job_reads_is_needed_until_it_ends(store: Store) -> None:
    new_job(store, "a", spec={"pool": {"name": "web", "sha256": "0"}}, request_id="r")
    write(store, pool_table.put_pool, pool_row("1"))
    write(store, pool_table.mark_ready, pool_row("1"))
    assert write(store, pool_table.versions_needed) == {("local", "web", "0"), ("local", "web", "1")}
    assert write(store, pool_table.pool_reference, "local", "web", "r", {}) == {"name": "web", "sha256": "0"}
    assert write(store, pool_table.pool_reference, "local", "web", "", {}) == {"name": "web", "sha256": "1"}
    assert refusal(store, pool_table.delete_pool, "local", "web") == "POOL_IN_USE"
    write(store, job_table.finish, claimed(store), "FAILED", None, ())
    assert write(store, pool_table.versions_needed) == {("local", "web", "1")}
    write(store, pool_table.delete_pool, "local", "web")
    assert refusal(store, pool_table.delete_pool, "local", "web") == "POOL_NOT_FOUND"


def test_shared_pool_is_found_behind_ones_own_and_kept_for_its_readers(store: Store) -> None:
    shared = {"web": "local"}
    write(store, pool_table.put_pool, pool_row("0"))
    assert write(store, pool_table.find_pool, "other", "web", shared) is None  # it is not ready
    write(store, pool_table.mark_ready, pool_row("0"))
    assert write(store, pool_table.find_pool, "other", "web", {}) is None
    reference = write(store, pool_table.pool_reference, "other", "web", "", shared)
    assert reference == {"name": "web", "sha256": "0", "owner": "local"}
    assert [pool.name for pool in write(store, pool_table.pools_after, "other", "", 5, shared)] == ["web"]
    assert write(store, pool_table.pools_after, "other", "web", 5, shared) == []
    write(store, pool_table.check_pool, "other", "compress", {"pool": reference})
    new_job(store, "a", tenant="other", spec={"pool": reference}, request_id="r")
    write(store, pool_table.put_pool, pool_row("1", "b"))
    write(store, pool_table.mark_ready, pool_row("1", "b"))
    assert ("local", "web", "0") in write(store, pool_table.versions_needed)
    assert write(store, pool_table.pool_reference, "other", "web", "r", {}) == reference
    with pytest.raises(PunnetError) as refused:
        write(store, pool_table.delete_pool, "local", "web")
    assert refused.value.code == "POOL_IN_USE"
    assert "job" not in refused.value.details  # it is another tenant's
    own = replace(pool_row("2", "c"), tenant="other")
    write(store, pool_table.put_pool, own)
    write(store, pool_table.mark_ready, own)
    assert write(store, pool_table.find_pool, "other", "web", shared).sha256 == "2"


def test_job_that_names_a_replaced_version_is_to_be_sent_again(store: Store) -> None:
    spec = {"name": "web", "pool": {"name": "web", "sha256": "0"}}
    assert refusal(store, pool_table.check_pool, "local", "compress", spec) == "POOL_NOT_FOUND"
    write(store, pool_table.put_pool, pool_row("1"))
    write(store, pool_table.mark_ready, pool_row("1"))
    assert refusal(store, pool_table.check_pool, "local", "compress", spec) == "UNAVAILABLE"
    new_job(store, "a", "ingest", spec=spec)
    assert refusal(store, pool_table.check_pool, "local", "ingest", spec) == "POOL_IN_USE"


def test_failed_transaction_leaves_nothing(store: Store) -> None:
    def half(db: sqlite3.Connection) -> None:
        job_table.insert_job(db, NewJob(tenant="local", id="a", kind="compress", spec={}))
        raise RuntimeError("half")

    with pytest.raises(RuntimeError):
        write(store, half)
    assert write(store, job_table.job_by_id, "local", "a") is None


def test_database_is_durable_and_strict(store: Store) -> None:
    def pragmas(db: sqlite3.Connection) -> list[Any]:
        return [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")]

    assert write(store, pragmas) == ["wal", 2, 1]
    tables = write(store, lambda db: db.execute("SELECT sql FROM sqlite_master WHERE type='table'").fetchall())
    assert all("STRICT" in row["sql"] and "tenant TEXT NOT NULL" in row["sql"] for row in tables)


def test_folder_of_another_schema_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(SchemaMismatch, match="schema 99"):
        Store(tmp_path / "db")
