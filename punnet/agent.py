"""A device agent: takes builds from an appliance, builds and measures on this machine, brings engines and report.

It may end at any point: its lease then ends too, and the build is offered again. What builds is the `exporters` package
installed here, in a process of its own; from the appliance come data only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from punnet.aio import AsyncClient
from punnet.blobs import download, upload_missing
from punnet.bundle_archive import unpack
from punnet.errors import CapacityExhausted, InvalidRequest, PunnetError, ServerUnavailable, make_error
from punnet.transfer import blob_of
from punnet.v1 import blob_pb2, build_pb2, job_pb2

log = logging.getLogger(__name__)

RENEWALS_A_LEASE = 3
TERM_SECONDS = 5.0
LINE_BYTES = 1 << 20
BUNDLE, ENGINES, TIMINGS = "bundle.zip", "engines", "timings"
REPORT = "device-report.json"
BROUGHT = (".engine", ".layers.json", REPORT)
LEASE_LOST = "BUILD_LEASE_LOST"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """Who this agent is.

    Args:
        name: no two agents of an appliance have the same.
        targets: those that its device serves.
        work: a folder of its own; builds come and go there, TensorRT's timings stay.
        poll_seconds: between two questions for work.
        measure_seconds: for each batch.
        once: end after one build that ended here.
    """

    name: str
    targets: tuple[str, ...]
    work: Path
    poll_seconds: float = 5.0
    measure_seconds: float = 2.0
    once: bool = False


async def read_device_facts() -> dict[str, Any]:
    """Builders, device and targets of this machine.

    Raises:
        InvalidRequest: the exporters can't be run here.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", "exporters.device_facts"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    if process.returncode:
        raise InvalidRequest(
            "This Python can't run the exporters.",
            code="REQUEST_INVALID",
            remedy="Install `punnet` and NumPy in the environment that has TensorRT.",
        )
    facts: dict[str, Any] = json.loads(output)
    return facts


async def run_agent(client: AsyncClient, settings: AgentSettings, stop: asyncio.Event) -> None:
    """Take builds until `stop` is set; what is being built then is given back. An appliance that is away is waited for.

    Raises:
        PunnetError: the appliance refuses this agent.
    """
    settings.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    request = build_pb2.LeaseBuildRequest(agent=settings.name, targets=settings.targets)
    while not stop.is_set():
        try:
            answer = await client.connection.call(client.connection.builds.LeaseBuild, request)
            if answer.HasField("build"):
                ended = await LeasedBuild(client, settings, answer.build).serve(stop)
                if ended and settings.once:
                    return
                continue
        except (ServerUnavailable, CapacityExhausted) as error:
            log.warning("%s", error)
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), settings.poll_seconds)


class LeasedBuild:
    """One build from its lease to its end."""

    def __init__(self, client: AsyncClient, settings: AgentSettings, build: build_pb2.Build) -> None:
        self._connection = client.connection
        self._settings = settings
        self._build = build
        self._folder = settings.work / build.job_id
        self._halt = asyncio.Event()  # the agent stops, the job is cancelled, or the lease is lost
        self._lost = False
        self._progress = job_pb2.Progress(unit="fetching the bundle", eta_seconds=-1.0)

    async def serve(self, stop: asyncio.Event) -> bool:
        """Build, and tell the appliance how it ended; false where the lease was lost before.

        Raises:
            ServerUnavailable: the appliance stays away; the lease ends then.
        """
        log.info("job %s: building for %s", self._build.job_id, self._build.target)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700)
        beside = {asyncio.create_task(self._renew()), asyncio.create_task(_then(stop, self._halt))}
        outcome: build_pb2.FinishBuildRequest | None = None
        try:
            outcome = await self._outcome()
            if not self._lost:
                await self._connection.call(self._connection.builds.FinishBuild, outcome)
        except PunnetError as error:
            if error.code != LEASE_LOST:
                raise
            self._lost = True
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside)
            shutil.rmtree(self._folder, ignore_errors=True)
            how = "lost" if self._lost or outcome is None else outcome.WhichOneof("outcome")
            log.info("job %s: %s", self._build.job_id, how)
        return not self._lost

    async def _renew(self) -> None:
        """Renew the lease until the build ends."""
        while True:
            request = build_pb2.RenewBuildRequest(
                job_id=self._build.job_id, lease=self._build.lease, progress=self._progress
            )
            try:
                answer = await self._connection.call(self._connection.builds.RenewBuild, request)
                if answer.cancelled:
                    self._halt.set()
            except (ServerUnavailable, CapacityExhausted) as error:  # it may be back before the build ends
                log.warning("%s", error)
            except PunnetError as error:
                log.warning("job %s: %s", self._build.job_id, error)
                self._lost = True
                self._halt.set()
                return
            await asyncio.sleep(self._build.lease_seconds / RENEWALS_A_LEASE)

    async def _outcome(self) -> build_pb2.FinishBuildRequest:
        """What to tell the appliance at the end."""
        ended = build_pb2.FinishBuildRequest(job_id=self._build.job_id, lease=self._build.lease)
        bundle = self._build.bundle
        artifact = job_pb2.Artifact(path=BUNDLE, sha256=bundle.sha256, size=bundle.size)
        try:
            await download(self._connection, [artifact], self._folder)
            unpacked = await asyncio.to_thread(unpack, self._folder / BUNDLE, self._folder / "bundle")
            await self._run(unpacked)
            if not self._halt.is_set():
                self._progress.unit = "uploading"
                ended.built.CopyFrom(await self._upload())
        except ServerUnavailable:
            raise
        except PunnetError as error:
            ended.failure.CopyFrom(job_pb2.JobError(reason=error.code, message=error.message, remedy=error.remedy))
        if self._halt.is_set():
            ended.given_back = True
        return ended

    async def _run(self, bundle: Path) -> None:
        """Run the program that builds; its end where the build is to stop.

        Raises:
            PunnetError: EXPORT_FAILED where it made no engine.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-m", "exporters.device_build", str(bundle)),
            *("--out", str(self._folder / ENGINES), "--timing-cache", str(self._settings.work / TIMINGS)),
            *("--seconds", str(self._settings.measure_seconds), "--lines", "--parent", str(os.getpid())),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            limit=LINE_BYTES,
        )
        reading = asyncio.create_task(self._read(process))
        halting = asyncio.create_task(self._halt.wait())
        try:
            await asyncio.wait({reading, halting}, return_when=asyncio.FIRST_COMPLETED)
            if not self._halt.is_set():
                await process.wait()  # it has said all, and ends
        finally:
            halting.cancel()
            await _end(process)
        refusal = await reading
        if process.returncode and not self._halt.is_set():
            raise refusal or make_error(
                "EXPORT_FAILED",
                f"The program that builds ended with exit status {process.returncode} and made no engine.",
                "Look at the agent's log on the device.",
            )

    async def _read(self, process: asyncio.subprocess.Process) -> PunnetError | None:
        """Follow the program's lines; what it refused, if it did."""
        refusal = None
        if process.stdout is None:
            raise RuntimeError("the program was started without a pipe")
        async for line in process.stdout:
            said = json.loads(line)
            if "refusal" in said:
                refusal = make_error("EXPORT_FAILED", said["refusal"]["message"], said["refusal"]["remedy"])
            else:
                self._progress = job_pb2.Progress(
                    done=said["done"], total=said["total"], unit=said["what"], eta_seconds=-1.0
                )
        return refusal

    async def _upload(self) -> build_pb2.BuiltFiles:
        """Bring what was made to the appliance."""
        made = sorted(p for p in (self._folder / ENGINES).iterdir() if p.name.endswith(BROUGHT))
        blobs = await asyncio.to_thread(lambda: [blob_of(path) for path in made])
        await upload_missing(self._connection, blobs)
        return build_pb2.BuiltFiles(
            files=[
                build_pb2.BuiltFile(name=path.name, digest=blob_pb2.BlobDigest(sha256=blob.sha256, size=blob.size))
                for path, blob in zip(made, blobs, strict=True)
            ]
        )


async def _then(first: asyncio.Event, second: asyncio.Event) -> None:
    await first.wait()
    second.set()


async def _end(process: asyncio.subprocess.Process) -> None:
    """SIGTERM, time to obey, SIGKILL; what it started ends with it."""
    for end in (process.terminate, process.kill):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                end()
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), TERM_SECONDS)
