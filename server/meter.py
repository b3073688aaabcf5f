"""Prometheus metrics: jobs by state, stages, the queue, bytes on the disk, calls; read at `/metrics`."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from pu_engine.pipeline import KINDS
from punnet import __version__
from server.collection import survey
from server.folders import DataFolder
from server.job_table import ACTIVE, BUILD_KIND, FINAL, Event
from server.store import Store

STAGE_BUCKETS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 12 * 3600)
CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600)
SURVEY_SECONDS = 60.0  # the folders are walked no more often
STORED = {"blob": "blobs", "upload": "uploads", "result": "results"}


class Meter:
    """The metrics of one server; what the tables and folders hold is looked up when they are read."""

    def __init__(self, store: Store, data: DataFolder) -> None:
        self._store = store
        self._data = data
        self._surveyed = -SURVEY_SECONDS
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("punnet_info", "Version of the server.", ["version"], registry=registry).labels(__version__).set(1)
        self._jobs = Gauge("punnet_jobs", "Jobs that are kept.", ["kind", "state"], registry=registry)
        self._queue = Gauge("punnet_queue_length", "Jobs that wait.", registry=registry)
        self._waiting = Gauge("punnet_queue_oldest_seconds", "How long the oldest of them waits.", registry=registry)
        self._ended = Counter("punnet_jobs_ended", "Jobs that ended since the start.", ["state"], registry=registry)
        self._stages = Histogram(
            "punnet_stage_seconds", "Seconds of finished stages.", ["stage"], buckets=STAGE_BUCKETS, registry=registry
        )
        self._stage_ends = Counter("punnet_stage_ends", "Ends of stages.", ["stage", "state"], registry=registry)
        self._calls = Histogram(
            "punnet_rpc_seconds", "Seconds of calls.", ["method", "code"], buckets=CALL_BUCKETS, registry=registry
        )
        self._stored = Gauge("punnet_stored_bytes", "Bytes in the data folder.", ["what"], registry=registry)
        self._free = Gauge("punnet_free_disk_bytes", "Bytes free on its disk.", registry=registry)

    def note(self, event: Event) -> None:
        """Count a job's event."""
        if event.kind == "state" and event.body["state"] in FINAL:
            self._ended.labels(event.body["state"]).inc()
        elif event.kind == "stage" and event.body["state"] != "RUNNING":
            name, state = event.body["name"], event.body["state"]
            self._stage_ends.labels(name, state).inc()
            if state == "SUCCEEDED":
                self._stages.labels(name).observe(event.body["seconds"])

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        """Count a call by its method and its status."""
        self._calls.labels(method, code).observe(seconds)

    def asgi(self) -> ASGIApp:
        """`/metrics` in Prometheus' text form; whoever reads it sees no names and no tenants."""
        return Starlette(routes=[Route("/metrics", self._answer)])

    async def _answer(self, request: Request) -> Response:
        counts, oldest = await self._store.read(read_counts)
        for (kind, state), count in counts.items():
            self._jobs.labels(kind, state).set(count)
        self._queue.set(sum(count for (_, state), count in counts.items() if state == "QUEUED"))
        self._waiting.set(0 if oldest is None else max(0.0, time.time() - oldest / 1e6))
        self._free.set(shutil.disk_usage(self._data.root).free)
        if time.monotonic() - self._surveyed >= SURVEY_SECONDS:
            self._surveyed = time.monotonic()
            for what, size in (await asyncio.to_thread(self._measure)).items():
                self._stored.labels(what).set(size)
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)

    def _measure(self) -> Mapping[str, int]:
        sizes = dict.fromkeys(STORED.values(), 0)
        for item in survey(self._data):
            sizes[STORED[item.kind]] += item.bytes
        pools = (self._data.root / "pools").rglob("*.tar")
        # Versions of a pool share shards as links: each is counted once.
        shards = {(status.st_dev, status.st_ino): status.st_size for status in (path.stat() for path in pools)}
        return {**sizes, "pools": sum(shards.values()), "database": self._data.database.stat().st_size}


def read_counts(db: sqlite3.Connection) -> tuple[dict[tuple[str, str], int], int | None]:
    """How many jobs of each kind are in each state, and since when the oldest one waits for this machine."""
    counts = {(kind, state): 0 for kind in (*KINDS, BUILD_KIND) for state in (*ACTIVE, *FINAL)}
    for row in db.execute("SELECT kind, state, count(*) AS jobs FROM job GROUP BY kind, state"):
        counts[row["kind"], row["state"]] = row["jobs"]
    waiting = "SELECT min(created) FROM job WHERE state='QUEUED' AND kind<>?"  # a build may wait for a device for days
    (oldest,) = db.execute(waiting, (BUILD_KIND,)).fetchone()
    return counts, oldest
