"""What the page says of a job: rows of the database and results of its stages, put together for the templates."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pu_engine.pipeline import DISTILLATION, INTAKE, SELECTION
from punnet.v1 import job_pb2
from server.curve import Point, read_curve, thinned
from server.folders import DataFolder, read_bounded
from server.job_message import job_message
from server.job_table import ArtifactRow, JobRow
from server.manifest import MANIFEST, MANIFEST_BYTES
from server.page.outcome import ClassBalance, NotReadable, Outcome, Samples, class_balance, read_outcome, read_samples

log = logging.getLogger(__name__)

REPORT, REPORT_PAGE, SAMPLES, CURVE = "report.json", "report.html", "samples.json", "curve.jsonl"
DONE = ("SUCCEEDED", "REUSED")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """One line of the list of stages."""

    name: str
    state: str
    attempt: int
    seconds: float
    memory: int
    share: float | None  # done of what is to be done, where that is known
    progress: str
    eta: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What changes while a job runs."""

    job: JobRow
    stages: tuple[StageView, ...]
    curve: tuple[Point, ...]
    balance: tuple[ClassBalance, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What a finished job shows; `unreadable` says what could not be shown."""

    outcome: Outcome | None
    samples: Samples | None
    report_page: bool
    files: tuple[ArtifactRow, ...]
    unreadable: tuple[str, ...]


def live_view(data: DataFolder, job: JobRow, tick: job_pb2.StageStatus | None, points: Sequence[Point]) -> Live:
    """The stages, the curve of the training, and the class balance once the selection has ended."""
    keys = {run.name: run.key for run in job.runs if run.state in DONE}
    curve = list(points)
    if DISTILLATION.name in keys:
        path = data.stage(job.tenant, keys[DISTILLATION.name]) / "out" / CURVE
        try:
            curve = read_curve(path)
        except (OSError, ValueError) as error:  # the stage's folder may have been removed since
            log.info("no curve to show", extra={"job": job.id, "why": str(error)})
    return Live(
        job=job,
        stages=tuple(_stage_view(stage) for stage in job_message(job, tick).stages),
        curve=tuple(thinned(curve)),
        balance=_balance(data, job, keys),
    )


def results_view(data: DataFolder, job: JobRow) -> Results:
    """What a finished job's artifacts say."""
    paths = {artifact.path: data.root / artifact.folder / artifact.path for artifact in job.artifacts}
    unreadable: list[str] = []
    outcome = _attempt(read_outcome, paths.get(REPORT), job, unreadable)
    samples = _attempt(read_samples, paths.get(SAMPLES), job, unreadable)
    return Results(
        outcome=outcome,
        samples=samples,
        report_page=REPORT_PAGE in paths,
        files=job.artifacts,
        unreadable=tuple(unreadable),
    )


def _attempt(read: Any, path: Path | None, job: JobRow, unreadable: list[str]) -> Any:
    if path is None:
        return None
    try:
        return read(path)
    except (OSError, NotReadable) as error:
        log.warning("a result can't be shown", extra={"job": job.id, "file": path.name, "why": str(error)})
        unreadable.append(path.name)
        return None


def _balance(data: DataFolder, job: JobRow, keys: Mapping[str, str]) -> tuple[ClassBalance, ...]:
    if SELECTION.name not in keys or INTAKE.name not in keys:
        return ()
    try:
        selection, intake = (_result(data, job, keys[stage.name]) for stage in (SELECTION, INTAKE))
        return class_balance(selection, intake.get("class_names", ()))
    except (OSError, ValueError) as error:
        log.info("no class balance to show", extra={"job": job.id, "why": str(error)})
        return ()


def _result(data: DataFolder, job: JobRow, key: str) -> Mapping[str, Any]:
    manifest = json.loads(read_bounded(data.stage(job.tenant, key) / "out" / MANIFEST, MANIFEST_BYTES))
    result = manifest.get("result") if isinstance(manifest, dict) else None
    if not isinstance(result, dict):
        raise NotReadable("a manifest without a result")
    return result


def _stage_view(stage: job_pb2.StageStatus) -> StageView:
    progress = stage.progress
    words = ""
    if progress.total:
        plural = "" if progress.total == 1 or progress.unit.endswith("s") else "s"
        words = f"{progress.done:,} of {progress.total:,} {progress.unit}{plural}"
    return StageView(
        name=stage.name,
        state=job_pb2.StageState.Name(stage.state).removeprefix("STAGE_STATE_").lower(),
        attempt=stage.attempt,
        seconds=stage.seconds,
        memory=stage.peak_memory_bytes,
        share=min(1.0, progress.done / progress.total) if progress.total else None,
        progress=words,
        eta=progress.eta_seconds if progress.total and progress.eta_seconds >= 0 else None,
    )


def stage_at(job: JobRow) -> str:
    """The stage that runs or has failed; empty where none does."""
    return next((run.name for run in reversed(job.runs) if run.state in ("RUNNING", "FAILED")), "")


def moment(microseconds: int | None) -> str:
    """A time of the database in UTC, to the minute."""
    if microseconds is None:
        return ""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M")


def span(seconds: float) -> str:
    """A length of time: 0.4 s, 12 s, 3 min 05 s, 2 h 04 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
