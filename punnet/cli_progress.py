"""What a user sees while bytes move and a job runs; all of it on stderr."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from punnet.blobs import Transfer, TransferProgress
from punnet.cli_output import notices, seconds_text, stage_state
from punnet.cli_page import place
from punnet.client import Client
from punnet.errors_from_rpc import error_from_job
from punnet.job import Job
from punnet.v1 import job_pb2

INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells have it
MARKS = {"SUCCEEDED": "done", "REUSED": "reused", "FAILED": "failed", "CANCELLED": "cancelled"}


@contextmanager
def transfer_bar(what: str) -> Iterator[TransferProgress]:
    """A bar in bytes, where stderr is a terminal; gives the callback that moves it."""
    console = notices()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task(what, total=None)

        def move(transfer: Transfer) -> None:
            bars.update(bar, completed=transfer.done, total=transfer.total)

        yield move


def run_to_end(client: Client, job_id: str, *, then: str = "") -> job_pb2.Job:
    """Shows a job until it SUCCEEDED. Ctrl-C leaves it running, or cancels it where the user says so.

    Args:
        then: the command with which a user who left goes on.

    Raises:
        PunnetError: what it failed with, or JobCancelled.
        typer.Exit: the user left.
    """
    try:
        follow(client, job_id)
    except KeyboardInterrupt:
        _leave(client, job_id, then)
    job = ended(client.job(job_id))
    if job is None:
        raise RuntimeError(f"the watch of job {job_id} ended before the job")
    return job


def ended(job: job_pb2.Job) -> job_pb2.Job | None:
    """The job where it SUCCEEDED, None where it goes on; raises PunnetError where it failed or was cancelled."""
    if job.state == job_pb2.JOB_STATE_SUCCEEDED:
        return job
    if job.state in (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED):
        raise error_from_job(job)
    return None


def finished_document(
    client: Client, job: Job, name: str, *, pages: Mapping[str, Path] | None = None
) -> dict[str, Any]:
    """Waits for a job and reads the one JSON artifact that it is there for.

    Args:
        pages: further artifacts by name, and the files that they become.
    """
    run_to_end(client, job.id)
    with tempfile.TemporaryDirectory(prefix="punnet-") as folder:
        client.download(job.id, folder)
        document: dict[str, Any] = json.loads((Path(folder) / name).read_text())
        for artifact, path in (pages or {}).items():
            place(Path(folder) / artifact, path)
    return document


def follow(client: Client, job_id: str) -> None:
    """Shows a job's stages, live on a terminal and a line for each change elsewhere, until it ends."""
    console = notices()
    stages = StageBars(console) if console.is_terminal else StageLines(console)
    warnings: set[str] = set()
    with stages.shown():
        for update in client.watch(job_id):
            kind = update.WhichOneof("update")
            if kind == "snapshot":
                _tell_wait(client, update.snapshot, console)
                for stage in update.snapshot.stages:
                    stages.show(stage)
            elif kind == "tick":
                stages.show(update.tick)
            elif update.event.HasField("stage"):
                stages.show(update.event.stage)
            elif update.event.warning and update.event.warning not in warnings:
                warnings.add(update.event.warning)
                console.print(f"warning: {update.event.warning}", style="yellow", soft_wrap=True, markup=False)


def _tell_wait(client: Client, job: job_pb2.Job, console: Console) -> None:
    """Says how many jobs are before a queued one, so that silence has a reason."""
    if job.state != job_pb2.JOB_STATE_QUEUED:
        return
    if job.kind == job_pb2.JOB_KIND_BUILD:
        console.print("waits for an agent on a device of the target", markup=False, highlight=False)
        return
    waits_or_runs = (job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING, job_pb2.JOB_STATE_CANCELLING)
    before = [
        other
        for other in client.jobs()
        if other.state in waits_or_runs
        and other.kind != job_pb2.JOB_KIND_BUILD
        and other.create_time.ToNanoseconds() < job.create_time.ToNanoseconds()
    ]
    if before:
        console.print(f"queued behind {len(before)} other job{'s' * (len(before) > 1)}", markup=False, highlight=False)


class StageLines:
    """A line for each stage that starts or ends: for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[str, str] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Nothing to clean up after lines."""
        yield

    def show(self, stage: job_pb2.StageStatus) -> None:
        """Prints the stage where its state is news."""
        state = stage_state(stage)
        if self._seen.get(stage.name, "PENDING") == state:
            return
        self._seen[stage.name] = state
        seconds = f" in {seconds_text(stage.seconds)}" if state == "SUCCEEDED" else ""
        self._console.print(f"{stage.name}: {MARKS.get(state, state.lower())}{seconds}", markup=False, highlight=False)


class StageBars(StageLines):
    """A bar for each stage: rate, figures of the moment such as the loss, and estimated time to its end."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Progress(
            TextColumn("{task.description:<13}"), BarColumn(), TextColumn("{task.fields[figures]}"), console=console
        )
        self._tasks: dict[str, TaskID] = {}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draws while the job runs."""
        with self._bars:
            yield

    def show(self, stage: job_pb2.StageStatus) -> None:
        """Moves the stage's bar."""
        state = stage_state(stage)
        if stage.name not in self._tasks:
            self._tasks[stage.name] = self._bars.add_task(stage.name, total=1, figures="")
        task = self._tasks[stage.name]
        if state == "RUNNING":
            total = stage.progress.total or None
            self._bars.update(task, completed=stage.progress.done, total=total, figures=figures(stage.progress))
        elif state in ("SUCCEEDED", "REUSED"):
            text = "reused" if state == "REUSED" else seconds_text(stage.seconds)
            self._bars.update(task, completed=1, total=1, figures=text)
        elif state != "PENDING":
            self._bars.update(task, figures=MARKS.get(state, state.lower()))


def figures(progress: job_pb2.Progress) -> str:
    """For instance `1200/1500 steps  41.2 steps/s  loss 1.312  7 s left`."""
    parts = []
    if progress.total:
        parts.append(f"{progress.done}/{progress.total} {progress.unit}")
    if progress.rate > 0:
        parts.append(f"{progress.rate:.1f} {progress.unit}/s")
    parts += [f"{name} {value:.4g}" for name, value in sorted(progress.metrics.items())]
    if progress.eta_seconds > 0:
        parts.append(f"{seconds_text(progress.eta_seconds)} left")
    return "  ".join(parts)


def _leave(client: Client, job_id: str, then: str) -> None:
    """Asks once whether to cancel; a second Ctrl-C, or nobody to ask, leaves the job running."""
    console = notices()
    cancel = False
    if sys.stdin.isatty():
        try:
            cancel = typer.confirm("\nCancel the job? Otherwise it goes on without you.", default=False, err=True)
        except (typer.Abort, KeyboardInterrupt):
            cancel = False
    if cancel:
        client.cancel(job_id)
        follow(client, job_id)
        return
    console.print(f"The job goes on. Watch it:  punnet watch {job_id}", soft_wrap=True, markup=False, highlight=False)
    console.print(f"Cancel it:  punnet cancel {job_id}", soft_wrap=True, markup=False, highlight=False)
    if then:
        console.print(f"Fetch what it made:  {then}", soft_wrap=True, markup=False, highlight=False)
    raise typer.Exit(INTERRUPTED_STATUS)
