"""`punnet jobs`, `watch`, `cancel`, `delete` and `download`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from punnet import cli_options as o
from punnet.aio import state_name
from punnet.cli_output import artifact_documents, bytes_text, job_document, print_document, print_table, stage_state
from punnet.cli_progress import ended, run_to_end, transfer_bar
from punnet.client import Client
from punnet.errors import InvalidRequest
from punnet.errors_from_rpc import error_from_job
from punnet.v1 import job_pb2

ID_CHARACTERS = 32
SHOWN_ID_CHARACTERS = 12  # every command takes the start of an id
SEARCHED_JOBS = 1000


def jobs(
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 50,
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """List jobs, newest first."""
    with Client(server, data=data) as client:
        found = client.jobs(limit)
    if as_json:
        print_document({"jobs": [job_document(job) for job in found]})
        return
    rows = [
        (
            job.id[:SHOWN_ID_CHARACTERS],
            job_pb2.JobKind.Name(job.kind).removeprefix("JOB_KIND_").lower(),
            state_name(job),
            job.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M UTC"),
            next((s.name for s in job.stages if stage_state(s) in ("RUNNING", "FAILED")), ""),
        )
        for job in found
    ]
    print_table("Jobs", ("job", "kind", "state", "created", "stage"), rows)


def watch(job: o.JobId, server: o.Server = None, data: o.Data = None, as_json: o.AsJson = False) -> None:
    """Show a job until it ends; the exit status is that of its error."""
    with Client(server, data=data) as client:
        job_id = full_id(client, job)
        done = ended(client.job(job_id)) or run_to_end(client, job_id)
    if as_json:
        print_document(job_document(done))
    else:
        typer.echo(f"{state_name(done)}  {len(done.artifacts)} files: punnet download {done.id} --out DIR")


def cancel(job: o.JobId, server: o.Server = None, data: o.Data = None, as_json: o.AsJson = False) -> None:
    """Ask a job to stop."""
    with Client(server, data=data) as client:
        asked = client.cancel(full_id(client, job))
    if as_json:
        print_document({"job": asked.id, "state": state_name(asked)})
    else:
        typer.echo(state_name(asked))


def delete(job: o.JobId, server: o.Server = None, data: o.Data = None, as_json: o.AsJson = False) -> None:
    """Remove a finished job and what only it used."""
    with Client(server, data=data) as client:
        job_id = full_id(client, job)
        client.delete(job_id)
    if as_json:
        print_document({"job": job_id})


def download(
    job: o.JobId,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the artifacts go.")],
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """Fetch what a job made, each file verified by its sha256."""
    with Client(server, data=data) as client:
        found = client.job(full_id(client, job))
        if found.state in (job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED):
            raise error_from_job(found)
        o.check_folder(out)
        with transfer_bar("downloading") as progress:
            client.download(found.id, out, progress)
        found = client.job(found.id)  # it may have ended since the first look
    if as_json:
        print_document({"job": found.id, "state": state_name(found), "artifacts": artifact_documents(found)})
        return
    for artifact in found.artifacts:
        typer.echo(f"{out / artifact.path}  {bytes_text(artifact.size)}")


def full_id(client: Client, start: str) -> str:
    """The id of the one job whose id starts so.

    Raises:
        InvalidRequest: several do. One that none starts with is given to the server as it is, which says so.
    """
    if len(start) == ID_CHARACTERS:
        return start
    found = [job.id for job in client.jobs(SEARCHED_JOBS) if job.id.startswith(start)]
    if len(found) > 1:
        raise InvalidRequest(
            f"{len(found)} jobs start with {start}.",
            code="REQUEST_INVALID",
            remedy="Give more characters of the id.",
            details={"job": start},
        )
    return found[0] if found else start
