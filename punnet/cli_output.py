"""What the commands print: one JSON document or tables on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from punnet.errors import PunnetError
from punnet.v1 import job_pb2


def results() -> Console:
    """Stdout."""
    return Console()


def notices() -> Console:
    """Stderr."""
    return Console(stderr=True)


def print_document(document: Mapping[str, Any]) -> None:
    """The one JSON document of a command with --json."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on stdout. Every text is shown as it is: names of users and models may look like markup."""
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    results().print(table)


def print_facts(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Names with what they are, without a frame, on stdout."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    console = results()
    console.print(Text(title, style="bold"))
    console.print(Padding(grid, (0, 0, 1, 2)))


def print_error(error: PunnetError, *, as_json: bool) -> None:
    """Message, remedy and code, without a trace; with --json the document is the error."""
    console = notices()
    where = f" (stage {error.details['stage']})" if "stage" in error.details else ""
    console.print(f"error{where}: {error.message}", style="bold red", soft_wrap=True, markup=False, highlight=False)
    if error.remedy:
        console.print(error.remedy, soft_wrap=True, markup=False, highlight=False)
    console.print(error.code, style="dim", soft_wrap=True, markup=False)
    if as_json:
        print_document({"error": error_document(error)})


def error_document(error: PunnetError) -> dict[str, Any]:
    """An error's JSON form."""
    return {"code": error.code, "message": error.message, "remedy": error.remedy, "details": error.details}


def job_document(job: job_pb2.Job) -> dict[str, Any]:
    """A job's JSON form. Times are RFC 3339; null before they happened."""
    failed = job.HasField("error")
    return {
        "job": job.id,
        "kind": job_pb2.JobKind.Name(job.kind).removeprefix("JOB_KIND_"),
        "state": job_pb2.JobState.Name(job.state).removeprefix("JOB_STATE_"),
        "created": _time(job.create_time),
        "started": _time(job.start_time),
        "ended": _time(job.end_time),
        "stages": [
            {"name": s.name, "state": stage_state(s), "seconds": s.seconds, "attempt": s.attempt} for s in job.stages
        ],
        "artifacts": artifact_documents(job),
        "warnings": list(job.warnings),
        "error": {"code": job.error.reason, "message": job.error.message, "stage": job.error.stage} if failed else None,
    }


def artifact_documents(job: job_pb2.Job) -> list[dict[str, Any]]:
    """Path below the download folder, sha256 and bytes of each artifact."""
    return [{"path": a.path, "sha256": a.sha256, "size": a.size} for a in job.artifacts]


def stage_state(stage: job_pb2.StageStatus) -> str:
    """For instance `RUNNING`."""
    return job_pb2.StageState.Name(stage.state).removeprefix("STAGE_STATE_")


def bytes_text(size: float) -> str:
    """For instance `1.2 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def seconds_text(seconds: float) -> str:
    """For instance `3 min 20 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def percent_text(share: float | None) -> str:
    """For instance `81.4 %`."""
    return "-" if share is None else f"{100 * share:.1f} %"


def _time(time: Timestamp) -> str | None:
    return time.ToJsonString() if time.seconds else None
