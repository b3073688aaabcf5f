"""Rows of the database as messages of the wire."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from pu_engine.pipeline import KINDS
from punnet.errors import TABLE
from punnet.v1 import job_pb2, pool_pb2
from server.job_table import BUILD_KIND, BUILD_STAGE, Event, JobRow, StageRun
from server.pool_table import PoolRow
from server.runners.port import StageProgress

WIRE_KIND = {
    "compress": "COMPRESS",
    "validate": "COMPRESS",
    "inspect": "INSPECT",
    "plan": "PLAN",
    "ingest": "INGEST",
    "verify_pool": "VERIFY_POOL",
    "describe_pool": "DESCRIBE_POOL",
    "build": "BUILD",
}
# An attempt that a restart lost, or a crash that is tried again, leaves its stage to be run.
WIRE_STAGE_STATE = {"LOST": "PENDING", "CRASHED": "PENDING"}


def job_message(job: JobRow, tick: job_pb2.StageStatus | None = None) -> job_pb2.Job:
    """The job as it is now; `tick` is the running stage's newest progress."""
    message = job_pb2.Job(
        id=job.id,
        kind=job_pb2.JobKind.Value(f"JOB_KIND_{WIRE_KIND[job.kind]}"),
        state=job_pb2.JobState.Value(f"JOB_STATE_{job.state}"),
        request_id=job.request_id,
        create_time=timestamp(job.created),
        stages=[_stage(job, name, tick) for name in stage_names(job.kind)],
        artifacts=[
            job_pb2.Artifact(path=a.path, sha256=a.sha256, size=a.size, reproducible=a.reproducible)
            for a in job.artifacts
        ],
        warnings=job.warnings,
    )
    if job.started is not None:
        message.start_time.CopyFrom(timestamp(job.started))
    if job.ended is not None:
        message.end_time.CopyFrom(timestamp(job.ended))
    if job.error is not None:
        message.error.CopyFrom(error_message(job.error))
    return message


def stage_names(kind: str) -> tuple[str, ...]:
    """The stages of a kind of job, in their order; a build's only one runs on a device."""
    return (BUILD_STAGE,) if kind == BUILD_KIND else tuple(stage.name for stage in KINDS[kind])


def event_message(event: Event) -> job_pb2.JobEvent:
    """One durable event."""
    message = job_pb2.JobEvent(seq=event.seq, time=timestamp(event.time))
    if event.kind == "state":
        message.state = job_pb2.JobState.Value(f"JOB_STATE_{event.body['state']}")
    elif event.kind == "stage":
        message.stage.CopyFrom(stage_message(StageRun(**event.body, key="")))
    elif event.kind == "warning":
        message.warning = event.body["text"]
    else:
        message.error.CopyFrom(error_message(event.body))
    return message


def stage_message(run: StageRun) -> job_pb2.StageStatus:
    """One run of a stage."""
    return job_pb2.StageStatus(
        name=run.name,
        state=job_pb2.StageState.Value(f"STAGE_STATE_{WIRE_STAGE_STATE.get(run.state, run.state)}"),
        attempt=run.attempt,
        seconds=run.seconds,
        peak_memory_bytes=run.peak_memory_bytes,
    )


def tick_message(run: StageRun, progress: StageProgress) -> job_pb2.StageStatus:
    """The running stage with its newest progress."""
    message = stage_message(run)
    left = progress.total - progress.done
    message.progress.CopyFrom(
        job_pb2.Progress(
            done=progress.done,
            total=progress.total,
            unit=progress.unit,
            rate=progress.rate,
            eta_seconds=left / progress.rate if progress.total and progress.rate > 0 else -1.0,
            metrics=progress.metrics,
        )
    )
    return message


def error_message(error: Mapping[str, Any]) -> job_pb2.JobError:
    """Why a job failed."""
    code = int(TABLE[error["code"]].status.value[0])
    return job_pb2.JobError(
        code=code,
        reason=error["code"],
        message=error["message"],
        remedy=error["remedy"],
        stage=error["stage"],
        details=error["details"],
    )


def pool_message(pool: PoolRow, tenant: str) -> pool_pb2.Pool:
    """One pool, as this tenant sees it."""
    shrink = pool_pb2.Shrink(short_side=pool.short_side, quality=pool.quality) if pool.short_side else None
    return pool_pb2.Pool(
        name=pool.name,
        images=pool.images,
        bad_images=pool.bad_images,
        shards=pool.shards,
        size=pool.size,
        sha256=pool.sha256,
        create_time=timestamp(pool.created),
        duplicates=pool.duplicates,
        near_duplicates=pool.near_duplicates,
        shrink=shrink,
        shared=pool.tenant != tenant,
    )


def timestamp(microseconds: int) -> Timestamp:
    """A time of the database."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return Timestamp(seconds=seconds, nanos=rest * 1000)


def _stage(job: JobRow, name: str, tick: job_pb2.StageStatus | None) -> job_pb2.StageStatus:
    runs = [run for run in job.runs if run.name == name]
    if not runs:
        return job_pb2.StageStatus(name=name, state=job_pb2.STAGE_STATE_PENDING)
    if runs[-1].state == "RUNNING" and tick is not None and tick.name == name:
        return tick
    return stage_message(runs[-1])
