"""The feed of a job: what a watcher gets, whenever it comes and whatever it has seen before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from punnet.errors import PunnetError
from punnet.v1 import compression_pb2, job_pb2
from server import job_table
from server.job_table import Event, JobRow, NewJob
from server.store import Store
from server.watch import CATCH_UP_EVENTS, RECENT_EVENTS, Watch

KEY = ("local", "a")
Updates = list[compression_pb2.WatchJobResponse]


class RunningJob:
    """A job that was claimed, and the watch over it."""

    def __init__(self, store: Store, row: JobRow) -> None:
        self.store = store
        self.row = row
        self.watch = Watch(store)

    async def warn(self, text: str, *, announced: bool = True) -> None:
        events = await self.store.write(job_table.add_warning, self.row, "ingest", text)
        if announced:
            await self.watch.publish(KEY, events)

    async def store_events(self, count: int) -> None:
        """Events that an earlier server announced."""

        def add(db: Any) -> list[Event]:
            return [job_table.add_event(db, *KEY, "warning", {"text": str(i), "stage": ""}) for i in range(count)]

        await self.store.write(add)

    async def end(self) -> None:
        await self.watch.publish(KEY, await self.store.write(job_table.finish, self.row, "SUCCEEDED", None, ()))

    def follow(self, after_seq: int = 0) -> tuple[asyncio.Task[Updates], Updates]:
        """A watcher: its task, which ends with the stream, and what it has got."""
        got: Updates = []

        async def read() -> Updates:
            async for update in self.watch.watch(*KEY, after_seq):
                got.append(update)
            return got

        return asyncio.create_task(read()), got


def on_job(folder: Path, test: Callable[[RunningJob], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        store = Store(folder / "db")
        try:
            await store.write(job_table.insert_job, NewJob(tenant="local", id="a", kind="ingest", spec={}))
            claimed = await store.write(job_table.claim, ("ingest",))
            assert claimed is not None
            await test(RunningJob(store, claimed[0]))
        finally:
            store.close()

    asyncio.run(asyncio.wait_for(run(), 8))


def seqs(updates: Updates) -> list[int]:
    return [update.event.seq for update in updates if update.WhichOneof("update") == "event"]


async def holds(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_watcher_that_has_seen_more_than_there_is_is_let_go_at_the_end(tmp_path: Path) -> None:
    async def test(job: RunningJob) -> None:
        task, got = job.follow(after_seq=999)
        await holds(lambda: got)
        await job.end()
        assert seqs(await task) == []

    on_job(tmp_path, test)


def test_more_events_than_a_page_are_all_delivered_while_the_job_runs(tmp_path: Path) -> None:
    async def test(job: RunningJob) -> None:
        await job.store_events(CATCH_UP_EVENTS + 200)
        task, got = job.follow()
        await holds(lambda: len(seqs(got)) == CATCH_UP_EVENTS + 202)  # QUEUED and RUNNING were there before
        await job.end()
        assert seqs(await task) == list(range(1, CATCH_UP_EVENTS + 204))

    on_job(tmp_path, test)


def test_more_events_than_a_page_are_all_replayed_of_an_ended_job(tmp_path: Path) -> None:
    async def test(job: RunningJob) -> None:
        await job.store_events(CATCH_UP_EVENTS - 2)  # with the first two a full page; the end is on the next
        await job.end()
        task, _ = job.follow()
        assert seqs(await task) == list(range(1, CATCH_UP_EVENTS + 2))

    on_job(tmp_path, test)


def test_watcher_that_left_in_the_first_page_hides_nothing_from_the_next(tmp_path: Path) -> None:
    async def test(job: RunningJob) -> None:
        await job.store_events(CATCH_UP_EVENTS + 200)
        last, _ = job.follow(after_seq=CATCH_UP_EVENTS + 300)
        first = job.watch.watch(*KEY, 0)
        for _ in range(2):
            await anext(first)
        task, got = job.follow(after_seq=CATCH_UP_EVENTS + 100)
        await holds(lambda: len(seqs(got)) == 102)
        await job.end()
        await asyncio.gather(task, last)

    on_job(tmp_path, test)


def test_slow_watcher_reads_the_table_where_the_memory_has_moved_on(tmp_path: Path) -> None:
    async def test(job: RunningJob) -> None:
        stream = job.watch.watch(*KEY, 0)
        await anext(stream)
        for index in range(RECENT_EVENTS + 10):
            await job.warn(str(index))
        await job.end()
        assert seqs([update async for update in stream]) == list(range(1, RECENT_EVENTS + 14))

    on_job(tmp_path, test)


def test_events_that_are_announced_in_another_order_come_in_their_own(tmp_path: Path) -> None:
    async def test(job: RunningJob) -> None:
        task, got = job.follow()
        await holds(lambda: len(seqs(got)) == 2)
        late = await job.store.write(job_table.add_warning, job.row, "ingest", "late")
        await job.end()
        await job.watch.publish(KEY, late)
        assert seqs(await task) == [1, 2, 3, 4]

    on_job(tmp_path, test)


def test_newest_tick_is_shown_and_goes_with_its_stage(tmp_path: Path) -> None:
    async def test(job: RunningJob) -> None:
        task, got = job.follow()
        await holds(lambda: len(seqs(got)) == 2)
        for done in (1, 2, 3):
            await job.watch.show(KEY, job_pb2.StageStatus(name="ingest", progress=job_pb2.Progress(done=done)))
        await holds(lambda: [u.tick.progress.done for u in got if u.WhichOneof("update") == "tick"][-1:] == [3])
        run = job_table.StageRun(name="ingest", attempt=1, state="SUCCEEDED", key="k")
        await job.watch.publish(KEY, await job.store.write(job_table.put_run, job.row, run))
        assert job.watch.tick(KEY) is None
        await job.end()
        await task

    on_job(tmp_path, test)


def test_drained_watcher_is_told_to_come_again(tmp_path: Path) -> None:
    async def test(job: RunningJob) -> None:
        task, got = job.follow()
        await holds(lambda: len(seqs(got)) == 2)
        await job.watch.drain()
        with pytest.raises(PunnetError) as away:
            await task
        assert away.value.code == "UNAVAILABLE"

    on_job(tmp_path, test)


def test_unknown_job_has_no_feed(tmp_path: Path) -> None:
    async def test(job: RunningJob) -> None:
        with pytest.raises(PunnetError) as refused:
            await anext(job.watch.watch("local", "b", 0))
        assert refused.value.code == "JOB_NOT_FOUND"

    on_job(tmp_path, test)
