"""What a user does while a fault happens: brings a file, makes a pool, inspects, compresses, fetches, and again.

Or, where torch takes too long, only looks at the pool in place of the compression. A refused call is made again, a
failed job is sent again; what each accepted job came to is noted.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pu_engine.pipeline import KINDS
from punnet.aio import FINAL_STATES, AsyncClient, state_name
from punnet.blobs import download, upload_missing
from punnet.errors import TABLE, IntegrityError, PunnetError, make_error
from punnet.transfer import Blob, blob_of
from punnet.v1 import job_pb2
from tests.conftest import SmallJob, make_small_job

P = ParamSpec("P")
T = TypeVar("T")
Submit = Callable[[str], Awaitable[job_pb2.Job]]  # by request id

# What the user does with the pool, and the stages that run for it.
PARTS: Mapping[str, tuple[str, ...]] = {
    "compression": tuple(stage.name for stage in KINDS["compress"]),
    "pool": tuple(stage.name for kind in ("verify_pool", "describe_pool") for stage in KINDS[kind]),
}
PARCEL_BYTES = 64 << 20
POOL_IMAGES = 1200
POOL = "stripes"
SETTINGS: dict[str, Any] = {
    "student": "cifar_resnet8", "steps": 60, "batch_size": 32, "targets": ["cpu"], "variants": ["fp32"], "seed": 5,
}  # fmt: skip
PAUSE_SECONDS = 0.5
PATIENCE_SECONDS = 240.0  # for one call or one job, after which it counts as lost
OVER_SECONDS = 120.0
DAMAGED_POOL = ("POOL_INVALID", "POOL_DAMAGED")
RECOVERY_TRIES = 2  # jobs that begin after the fault; the first may meet what it left, for instance a flipped bit


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The files of a user."""

    job: SmallJob
    parcel: Blob


def make_subject(folder: Path) -> Subject:
    """The same bytes each time."""
    parcel = folder / "parcel"
    parcel.write_bytes(random.Random(1).randbytes(PARCEL_BYTES))
    return Subject(job=make_small_job(folder, pool_images=POOL_IMAGES), parcel=blob_of(parcel))


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnd:
    """What an accepted job came to; `digests` are those of its reproducible artifacts."""

    kind: str
    id: str
    state: str
    attempts: int  # of the stage that had most; what Ray runs again is the same attempt
    code: str = ""
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def typed(self) -> bool:
        """Whether its error says what happened; INTERNAL only says that something did."""
        return self.code in TABLE and self.code != "INTERNAL"


@dataclass
class Work:
    """One user's work in one round; `over` is set once the fault is."""

    address: str
    subject: Subject
    folder: Path  # where artifacts go
    over: threading.Event
    part: str  # of PARTS
    ends: list[JobEnd] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)  # codes of what was tried again
    problems: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)  # all was had once: too late for a fault

    def run(self) -> None:
        """All of it; what must not happen is noted under `problems`."""
        try:
            asyncio.run(self._do())
        except PunnetError as error:
            self.problems.append(f"gave up: {error.code}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever else a client raises is what a round is to find
            self.problems.append(f"the client raised {type(error).__name__}: {error}")
        finally:
            self.done.set()

    async def _do(self) -> None:
        async with AsyncClient(self.address) as client:
            parcel = self.subject.parcel
            await self._call(upload_missing, client.connection, [parcel])
            await self._make_pool(client, "ingest")
            for turn in ("first", "again"):  # the second reuses what the first has left, and needs its slots
                await (self._compress if self.part == "compression" else self._look)(client, turn)
                if turn == "first":
                    self.done.set()
                    await asyncio.to_thread(self.over.wait, OVER_SECONDS)
            artifact = job_pb2.Artifact(path="parcel", sha256=parcel.sha256, size=parcel.size)
            await self._call(download, client.connection, [artifact], self.folder)

    async def _make_pool(self, client: AsyncClient, what: str) -> None:
        tar = self.subject.job.pool_tar
        await self._finish(client, what, lambda name: client.create_pool(POOL, [tar], request_id=name))

    async def _look(self, client: AsyncClient, turn: str) -> None:
        await self._finish(client, f"verify {turn}", lambda name: client.verify_pool(POOL, request_id=name))
        await self._fetch(client, f"describe {turn}", lambda name: client.describe_pool(POOL, request_id=name))

    async def _compress(self, client: AsyncClient, turn: str) -> None:
        job = self.subject.job
        await self._finish(
            client, f"inspect {turn}", lambda name: client.inspect(job.teacher, job.images, request_id=name)
        )
        await self._fetch(
            client,
            f"compress {turn}",
            lambda name: client.compress(job.teacher, job.images, POOL, request_id=name, **SETTINGS),
        )

    async def _fetch(self, client: AsyncClient, what: str, submit: Submit) -> None:
        """Finish a job and download what it made; the same job sent again makes a damaged artifact anew."""
        tries = 0
        while True:
            tries += 1
            done = await self._finish(client, f"{what} {tries}", submit)
            try:
                await self._call(client.download, done.id, self.folder / done.id)
                return
            except IntegrityError as error:
                self.refusals[f"download {error.code}"] += 1
                if tries > RECOVERY_TRIES:
                    raise

    async def _finish(self, client: AsyncClient, what: str, submit: Submit) -> job_pb2.Job:
        """Send a job until one succeeds; raises the error of the last that may fail."""
        tries = recoveries = 0
        while True:
            tries += 1
            recoveries += self.over.is_set()
            name = f"{what} {tries}".replace(" ", "-")
            accepted = await self._call(submit, name)
            self.accepted.append(accepted.id)
            job = await self._end(client, accepted.id)
            self.ends.append(_end_of(what.partition(" ")[0], job))
            if job.state == job_pb2.JOB_STATE_SUCCEEDED:
                return job
            if recoveries >= RECOVERY_TRIES:
                raise make_error(job.error.reason, f"{what} still fails after the fault: {job.error.message}")
            await asyncio.to_thread(self.over.wait, OVER_SECONDS)
            if job.error.reason in DAMAGED_POOL:  # a user's remedy, as the error says
                await self._call(client.delete_pool, POOL)
                await self._make_pool(client, f"ingest for {name}")

    async def _end(self, client: AsyncClient, job_id: str) -> job_pb2.Job:
        """Wait for a job's end, however often the way to it breaks."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await client.wait(job_id)
            except PunnetError as error:
                job = await self._call(client.job, job_id)
                if job.state in FINAL_STATES:
                    return job
                self.refusals[f"watch {error.code}"] += 1
                if time.monotonic() > end:
                    raise

    async def _call(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call until it is not refused."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return await call(*args, **kwargs)
            except IntegrityError:
                raise
            except PunnetError as error:
                self.refusals[error.code] += 1
                if error.code == "INTERNAL":
                    self.problems.append(f"a call failed without saying why: {error}")
                if time.monotonic() > end:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)


def _end_of(kind: str, job: job_pb2.Job) -> JobEnd:
    digests = {artifact.path: artifact.sha256 for artifact in job.artifacts if artifact.reproducible}
    attempts = max((stage.attempt for stage in job.stages), default=0)
    return JobEnd(
        kind=kind, id=job.id, state=state_name(job), attempts=attempts, code=job.error.reason, digests=digests
    )
