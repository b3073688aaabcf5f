"""Who watches a job learns of it in memory; the event table is read only to catch up."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from punnet.errors import make_error
from punnet.v1 import compression_pb2, job_pb2
from server.curve import LiveCurve, Point
from server.job_message import event_message, job_message
from server.job_table import FINAL, Event, JobRow, events_after, job_by_id
from server.store import Store

RECENT_EVENTS = 256
CATCH_UP_EVENTS = 500
TICK_SECONDS = 0.25
HEARTBEAT_SECONDS = 10.0


@dataclass(slots=True)
class Feed:
    """What watchers of one job wait for."""

    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    recent: deque[Event] = field(default_factory=lambda: deque(maxlen=RECENT_EVENTS))
    last_seq: int = 0
    tick: job_pb2.StageStatus | None = None
    ticks: int = 0
    curve: LiveCurve = field(default_factory=LiveCurve)
    watchers: int = 0
    ended: bool = False


class Watch:
    """The feeds of all jobs that run or are watched."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._feeds: dict[tuple[str, str], Feed] = {}
        self._draining = False
        self.observers: list[Callable[[Event], None]] = []  # told of every event once it is durable

    async def publish(self, job: tuple[str, str], events: Sequence[Event]) -> None:
        """Announce events that are durable by now."""
        if not events:
            return
        feed = self._feeds.setdefault(job, Feed())
        for event in sorted(events, key=lambda e: e.seq):
            for observe in self.observers:
                observe(event)
            # Two writers may announce in another order than they committed; watchers then read the table.
            if not feed.recent or event.seq == feed.recent[-1].seq + 1:
                feed.recent.append(event)
            else:
                feed.recent.clear()
            feed.last_seq = max(feed.last_seq, event.seq)
            if event.kind == "stage" and event.body["state"] != "RUNNING":
                feed.tick = None
            feed.ended = feed.ended or _is_final(event)
        await self._wake(feed)
        if feed.ended:
            self._drop(job)

    async def show(self, job: tuple[str, str], tick: job_pb2.StageStatus) -> None:
        """The newest progress of the running stage."""
        feed = self._feeds.setdefault(job, Feed())
        feed.tick, feed.ticks = tick, feed.ticks + 1
        metrics = tick.progress.metrics
        if "loss" in metrics:
            agreement = metrics.get("held_out_agreement")
            feed.curve.add(Point(step=int(tick.progress.done), loss=metrics["loss"], agreement=agreement))
        await self._wake(feed)

    def tick(self, job: tuple[str, str]) -> job_pb2.StageStatus | None:
        """The newest progress, if the job runs."""
        feed = self._feeds.get(job)
        return feed.tick if feed else None

    def curve(self, job: tuple[str, str]) -> Sequence[Point]:
        """The curve of the training that runs, as far as this server has seen it."""
        feed = self._feeds.get(job)
        return feed.curve.points if feed else ()

    async def drain(self) -> None:
        """Send every watcher away: the server goes down."""
        self._draining = True
        for feed in list(self._feeds.values()):
            await self._wake(feed)

    async def watch(self, tenant: str, job_id: str, after_seq: int) -> AsyncIterator[compression_pb2.WatchJobResponse]:
        """A snapshot, then every event after `after_seq` up to the final one, ticks and heartbeats.

        Raises:
            PunnetError: no such job; or UNAVAILABLE, when the server goes down.
        """
        key = (tenant, job_id)
        # Before the job is read: its end is then either in the row or announced to this feed.
        feed = self._feeds.setdefault(key, Feed())
        feed.watchers += 1
        try:
            row = await self._store.read(job_by_id, tenant, job_id)
            if row is None:
                raise make_error("JOB_NOT_FOUND", f"There is no job {job_id[:64]!r}.", "`punnet jobs` lists the jobs.")
            feed.ended = feed.ended or row.state in FINAL
            yield compression_pb2.WatchJobResponse(snapshot=job_message(row, feed.tick))
            async for message in self._follow(feed, row, after_seq):
                yield message
        finally:
            feed.watchers -= 1
            self._drop(key)

    async def _follow(self, feed: Feed, row: JobRow, after_seq: int) -> AsyncIterator[compression_pb2.WatchJobResponse]:
        seq, shown, shown_at, spoke_at = after_seq, feed.ticks, 0.0, time.monotonic()
        while True:
            ended = feed.ended  # as it was before the events are read: they are all there then
            events = await self._events(feed, row, seq)
            for event in events:
                yield compression_pb2.WatchJobResponse(event=event_message(event))
                seq, spoke_at = event.seq, time.monotonic()
                if _is_final(event):
                    return
            if len(events) == CATCH_UP_EVENTS:
                continue
            if ended:
                return
            if self._draining:
                raise make_error("UNAVAILABLE", "The server goes down.", "Open the stream again with the last `seq`.")
            now = time.monotonic()
            if feed.tick is None:
                shown = feed.ticks
            if feed.ticks != shown and feed.tick is not None and now - shown_at >= TICK_SECONDS:
                shown, shown_at, spoke_at = feed.ticks, now, now
                yield compression_pb2.WatchJobResponse(tick=feed.tick)
            elif now - spoke_at >= HEARTBEAT_SECONDS:
                spoke_at = now
                yield compression_pb2.WatchJobResponse(heartbeat=compression_pb2.Heartbeat())
            await self._wait(feed, seq, shown, shown_at, spoke_at)

    async def _events(self, feed: Feed, row: JobRow, seq: int) -> list[Event]:
        """What follows `seq`; exactly CATCH_UP_EVENTS where there may be more."""
        if feed.recent and feed.recent[0].seq <= seq + 1 and feed.recent[-1].seq == feed.last_seq:
            return [event for event in feed.recent if event.seq > seq]
        if feed.last_seq and feed.last_seq <= seq and not feed.ended:
            return []
        events = await self._store.read(events_after, row.tenant, row.id, seq, CATCH_UP_EVENTS)
        if len(events) < CATCH_UP_EVENTS:  # else the last of them may not be the job's last
            feed.last_seq = max([feed.last_seq, *(event.seq for event in events)])
        return events

    async def _wait(self, feed: Feed, seq: int, shown: int, shown_at: float, spoke_at: float) -> None:
        """Until there is an event or a due tick, at most to the next heartbeat."""
        tick_waits = feed.ticks != shown  # it came too early: it is sent when it is due
        due = shown_at + TICK_SECONDS if tick_waits else spoke_at + HEARTBEAT_SECONDS

        def news() -> bool:
            return feed.last_seq > seq or feed.ended or self._draining or (feed.ticks != shown and not tick_waits)

        try:
            async with feed.changed:
                await asyncio.wait_for(feed.changed.wait_for(news), max(0.0, due - time.monotonic()))
        except TimeoutError:
            return

    async def _wake(self, feed: Feed) -> None:
        async with feed.changed:
            feed.changed.notify_all()

    def _drop(self, job: tuple[str, str]) -> None:
        """Forget a feed that nobody watches and nothing feeds; the table has it all."""
        feed = self._feeds.get(job)
        if feed and not feed.watchers and (not feed.recent or feed.ended):
            del self._feeds[job]


def _is_final(event: Event) -> bool:
    return event.kind == "state" and event.body["state"] in FINAL
