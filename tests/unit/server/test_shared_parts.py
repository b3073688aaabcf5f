"""A stage that takes parts of earlier results over: which ones it is offered, and that it may read them, confined."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pu_engine.pipeline import SCORING
from pu_engine.types import File, Folder
from server import job_table
from server.folders import DataFolder
from server.job_table import JobRow, NewJob, StageRun
from server.runners.local import LocalRunner
from server.stage_execution import Finished, JobContext, StageExecution
from server.store import Store
from server.watch import Watch

Pack = Callable[[Path, Mapping[str, bytes]], File]
MakeJpeg = Callable[..., bytes]


async def claimed(store: Store, tenant: str, job_id: str) -> JobRow:
    """A compression that has begun."""
    await store.write(job_table.insert_job, NewJob(tenant=tenant, id=job_id, kind="compress", spec={}))
    found = await store.write(job_table.claim, ("compress",))
    assert found is not None
    return found[0]


async def scored(root: Path, inputs: Sequence[tuple[str, dict[str, Any], list[Path]]]) -> list[Finished]:
    """Scorings of one server, one after the other, each a job of its own of the tenant named."""
    data = DataFolder(root)
    root.mkdir()
    store = Store(data.database)
    execution = StageExecution(store, data, LocalRunner(), Watch(store))
    found = []
    try:
        for number, (tenant, values, read) in enumerate(inputs):
            job = await claimed(store, tenant, f"job-{number}")
            context = JobContext(job=job, stop=asyncio.Event(), cancelled=lambda: False)
            found.append(await execution.finish(context, SCORING, values, read))
    finally:
        store.close()
    return found


def test_a_job_with_other_labelled_images_scores_no_shard_again(
    tmp_path: Path,
    make_pool: Callable[..., Folder],
    make_intake: Callable[..., Folder],
    make_jpeg: MakeJpeg,
    pack: Pack,
) -> None:
    pool = make_pool(tmp_path, {f"{i:02d}.jpg": make_jpeg(i) for i in range(12)})
    intake = make_intake(tmp_path / "intake")

    def job(tenant: str, first: int) -> tuple[str, dict[str, Any], list[Path]]:
        tar = pack(tmp_path / f"{first}.tar", {f"a/{i}.jpg": make_jpeg(first + i, quality=60) for i in range(3)})
        values = {
            "intake": {"path": intake.path, "sha256": intake.sha256},
            "pool": {"path": pool.path, "sha256": pool.sha256},
            "images": {"tar": {"path": tar.path, "sha256": tar.sha256}},
            "threads": 1,
        }
        return tenant, values, [Path(intake.path), Path(pool.path), Path(tar.path)]

    jobs = [job("one", 100), job("one", 200), job("two", 300)]
    found = asyncio.run(scored(tmp_path / "data", jobs))
    assert [result.manifest.result["taken_over"] for result in found] == [0, 12, 0]  # tenants share nothing
    files = [{f.path: f.sha256 for f in result.manifest.files} for result in found]
    assert files[0]["shard-00002.logits.npy"] == files[1]["shard-00002.logits.npy"]
    assert files[0]["labelled.logits.npy"] != files[1]["labelled.logits.npy"]


def test_checked_results_are_offered_newest_first(tmp_path: Path) -> None:
    store = Store(tmp_path / "db.sqlite3")
    runs = [("a", "SUCCEEDED"), ("b", "FAILED"), ("c", "SUCCEEDED"), ("a", "REUSED"), ("d", "SUCCEEDED")]

    async def keys() -> list[str]:
        for number, (key, state) in enumerate(runs):
            job = await claimed(store, "one", f"{number}")
            await store.write(job_table.put_run, job, StageRun(name="scoring", attempt=1, state=state, key=key))
        found: list[str] = await store.read(job_table.finished_keys, "one", "scoring", 2)
        assert await store.read(job_table.finished_keys, "two", "scoring", 2) == []
        return found

    assert asyncio.run(keys()) == ["d", "c"]
    store.close()
