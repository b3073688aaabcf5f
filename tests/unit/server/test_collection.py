"""What goes: planned from needs and ages, carried out beside an engine that runs."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from server import job_table
from server.blobs import Digest
from server.collection import DAY_SECONDS, Bounds, EndedJob, Needs, Stored, old_jobs, plan
from server.collector import Collector
from tests.unit.server.test_jobs import TENANT, Appliance, holding, holds, on_appliance

NOW = 1_000 * DAY_SECONDS
OLD = NOW - 2 * DAY_SECONDS
NOTHING = Needs(ended_jobs=(), results={}, artifacts=frozenset(), active_blobs=frozenset(), ended_blobs=frozenset())


def stored(kind: str, name: str, *, size: int = 10, changed: float = OLD) -> Stored:
    return Stored(kind=kind, tenant="t", name=name, path=Path(kind) / name, bytes=size, changed=changed)


def needs(**change: object) -> Needs:
    values = {name: getattr(NOTHING, name) for name in Needs.__dataclass_fields__}
    return Needs(**(values | change))


def went(needs: Needs, items: list[Stored], bounds: Bounds = Bounds()) -> set[str]:  # noqa: B008 - frozen
    return {removal.name for removal in plan(needs, items, bounds, NOW).removals}


def test_what_no_job_names_goes_after_a_day() -> None:
    items = [stored(kind, f"{kind}-{age}", changed=NOW - age) for kind in ("blob", "result", "upload")
             for age in (3600.0, 2 * DAY_SECONDS)]  # fmt: skip
    assert went(NOTHING, items) == {"blob-172800.0", "result-172800.0", "upload-172800.0"}


def test_what_jobs_name_stays_however_old() -> None:
    items = [stored("blob", "a"), stored("blob", "b"), stored("result", "c"), stored("result", "d")]
    found = needs(
        active_blobs=frozenset({("t", "a")}), ended_blobs=frozenset({("t", "b")}),
        results={("t", "c"): None, ("t", "d"): OLD},
    )  # fmt: skip
    assert went(found, items) == set()


def test_another_tenants_need_keeps_nothing() -> None:
    assert went(needs(ended_blobs=frozenset({("other", "a")})), [stored("blob", "a")]) == {"a"}


def test_results_go_by_the_age_of_their_last_job_but_never_those_with_artifacts() -> None:
    items = [stored("result", name) for name in ("old", "new", "running", "artifacts")]
    results = {("t", "old"): OLD, ("t", "new"): NOW - 60, ("t", "running"): None, ("t", "artifacts"): OLD}
    found = needs(results=results, artifacts=frozenset({("t", "artifacts")}))
    assert went(found, items, Bounds(result_days=1)) == {"old"}
    assert went(found, items, Bounds(result_days=0)) == {"old", "new"}


def test_jobs_go_by_age() -> None:
    found = needs(ended_jobs=(EndedJob(tenant="t", id="old", ended=OLD), EndedJob(tenant="t", id="new", ended=NOW)))
    assert [r.name for r in old_jobs(found, Bounds(job_days=1), NOW)] == ["old"]
    assert old_jobs(found, Bounds(), NOW) == []


def test_a_quota_takes_the_oldest_results_first_then_blobs_and_nothing_of_active_jobs() -> None:
    items = [
        stored("blob", "blob", changed=OLD - 9), stored("blob", "active", changed=OLD - 9),
        stored("result", "older", changed=OLD - 2), stored("result", "newer", changed=OLD - 1),
        stored("result", "running"), stored("result", "artifacts"),
    ]  # fmt: skip
    results = {("t", name): OLD for name in ("older", "newer", "artifacts")} | {("t", "running"): None}
    found = needs(
        results=results, artifacts=frozenset({("t", "artifacts")}),
        active_blobs=frozenset({("t", "active")}), ended_blobs=frozenset({("t", "blob"), ("t", "active")}),
    )  # fmt: skip
    assert went(found, items, Bounds(quota_bytes=60)) == set()
    assert went(found, items, Bounds(quota_bytes=50)) == {"older"}
    assert went(found, items, Bounds(quota_bytes=45)) == {"older", "newer"}
    assert went(found, items, Bounds(quota_bytes=0)) == {"older", "newer", "blob"}
    assert plan(found, items, Bounds(quota_bytes=0), NOW).kept_bytes == 30


def aged(path: Path) -> None:
    os.utime(path, (time.time() - 2 * DAY_SECONDS,) * 2)


@pytest.mark.parametrize("apply", [False, True])
def test_only_an_applied_collection_removes(tmp_path: Path, apply: bool) -> None:
    async def test(appliance: Appliance) -> None:
        appliance.blobs.put_all(TENANT, [b"nobody's"])
        for blob in holding(tmp_path / "blobs", b"nobody's"):
            aged(blob)
        collector = Collector(store=appliance.store, data=appliance.data, engine=appliance.engine, bounds=Bounds())
        found = await collector.collect(Bounds(), apply=apply)
        assert [(r.kind, r.bytes) for r in found.removals] == [("blob", 8)]
        assert bool(holding(tmp_path / "blobs", b"nobody's")) is not apply
        assert found.removed_bytes == 8

    on_appliance(tmp_path, test)


def test_what_a_waiting_job_needs_is_not_removed_though_it_is_old(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        await appliance.ingest("web", b"wanted")
        for blob in holding(tmp_path, b"wanted"):
            aged(blob)
        collector = Collector(store=appliance.store, data=appliance.data, engine=appliance.engine, bounds=Bounds())
        found = await collector.collect(Bounds(job_days=0, result_days=0, quota_bytes=0), apply=True)
        assert found.removals == ()
        assert holding(tmp_path / "blobs", b"wanted")

    on_appliance(tmp_path, test)


def test_a_blob_that_was_asked_for_after_the_plan_stays(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        (sha256,) = appliance.blobs.put_all(TENANT, [b"asked for"])
        (path,) = holding(tmp_path / "blobs", b"asked for")
        item = Stored(kind="blob", tenant=TENANT, name=sha256, path=path, bytes=9, changed=OLD)
        removals = plan(NOTHING, [item], Bounds(), NOW).removals
        assert removals
        appliance.blobs.find(TENANT, sha256)
        assert await appliance.engine.remove_unneeded(removals) == []
        assert appliance.blobs.committed_size(TENANT, Digest(sha256, 9)) == (9, True)

    on_appliance(tmp_path, test)


def test_a_result_that_an_active_job_uses_is_not_forgotten(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        await appliance.ingest("web")
        claimed = await appliance.store.write(job_table.claim, ("ingest",))
        assert claimed is not None
        folder = appliance.data.stage(TENANT, "key")
        folder.mkdir(parents=True)
        run = job_table.StageRun(name="ingest", attempt=1, state="SUCCEEDED", key="key")
        await appliance.store.write(job_table.put_run, claimed[0], run)
        assert not await appliance.execution.forget(TENANT, "key")
        await appliance.store.write(job_table.finish, claimed[0], "FAILED", None, ())
        assert await appliance.execution.forget(TENANT, "key")
        assert not folder.exists()

    on_appliance(tmp_path, test)


def test_retention_removes_an_old_job_with_every_byte_of_its_files(tmp_path: Path) -> None:
    secret = b"an image of mine" * 64

    async def test(appliance: Appliance) -> None:
        job = await appliance.ingest("web", secret)
        appliance.engine.start()
        assert (await appliance.ended(job.id)).state == "FAILED"
        await holds(appliance.engine.idle)
        collector = Collector(store=appliance.store, data=appliance.data, engine=appliance.engine, bounds=Bounds())
        planned = await collector.collect(Bounds(job_days=0), apply=False)
        assert ("job", job.id) in {(r.kind, r.name) for r in planned.removals}
        assert holding(tmp_path, secret)
        await collector.collect(Bounds(job_days=0), apply=True)
        assert holding(tmp_path, secret) == []
        assert await appliance.store.read(job_table.job_by_id, TENANT, job.id) is None

    on_appliance(tmp_path, test)


def test_deleting_a_job_keeps_the_files_that_another_names(tmp_path: Path) -> None:
    async def test(appliance: Appliance) -> None:
        one, other = await appliance.ingest("a", b"shared"), await appliance.ingest("b", b"shared")
        for job in (one, other):
            await appliance.engine.cancel(TENANT, job.id)
        await appliance.engine.delete(TENANT, one.id)
        assert holding(tmp_path / "blobs", b"shared")
        await appliance.engine.delete(TENANT, other.id)
        assert holding(tmp_path / "blobs", b"shared") == []

    on_appliance(tmp_path, test)
