"""A handle on one job of the appliance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from punnet.aio import FINAL_STATES, StageProgress, state_name
from punnet.blobs import TransferProgress
from punnet.errors import PunnetError
from punnet.errors_from_rpc import error_from_job
from punnet.v1 import compression_pb2, job_pb2

if TYPE_CHECKING:
    from punnet.client import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What a job that SUCCEEDED made."""

    id: str
    artifacts: tuple[job_pb2.Artifact, ...]
    warnings: tuple[str, ...]
    stages: tuple[job_pb2.StageStatus, ...]


class Job:
    """A job, known by its id; it goes on whether or not anybody holds this."""

    def __init__(self, client: Client, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"Job({self.id!r})"

    @property
    def status(self) -> job_pb2.Job:
        """The job as the server has it now."""
        return self._client.job(self.id)

    @property
    def state(self) -> str:
        """QUEUED, RUNNING, CANCELLING, SUCCEEDED, FAILED or CANCELLED."""
        return state_name(self.status)

    @property
    def error(self) -> PunnetError | None:
        """Why it FAILED or was CANCELLED; None otherwise."""
        status = self.status
        if status.state not in FINAL_STATES or status.state == job_pb2.JOB_STATE_SUCCEEDED:
            return None
        return error_from_job(status)

    def wait(self, progress: StageProgress | None = None) -> JobResult:
        """The result once the job SUCCEEDED; `progress` is called with the running stage's newest status.

        Raises:
            JobCancelled: it was cancelled.
            PunnetError: it failed; `stage` is among the details.
        """
        done = self._client.wait(self.id, progress)
        return JobResult(
            id=done.id, artifacts=tuple(done.artifacts), warnings=tuple(done.warnings), stages=tuple(done.stages)
        )

    def watch(self, after_seq: int = 0) -> Iterator[compression_pb2.WatchJobResponse]:
        """Snapshots, durable events without gaps, and ticks, to the job's end."""
        return self._client.watch(self.id, after_seq=after_seq)

    def cancel(self) -> None:
        """Asks the job to stop."""
        self._client.cancel(self.id)

    def download(self, folder: Path | str, progress: TransferProgress | None = None) -> list[Path]:
        """Fetches every artifact below a folder, each verified by its sha256."""
        return self._client.download(self.id, folder, progress)
