"""`punnet gc`: say what nobody needs any more on an appliance, and remove it when asked to."""

from __future__ import annotations

from typing import Annotated

import typer

from punnet import cli_options as o
from punnet.cli_output import bytes_text, print_document, print_table
from punnet.client import Client
from punnet.v1 import operator_pb2

GIB = 2**30
SHOWN_REMOVALS = 50
NAME_CHARACTERS = 16


def gc(
    *,
    apply: Annotated[bool, typer.Option("--apply", help="Remove it; else only say what would go.")] = False,
    job_days: Annotated[
        float | None, typer.Option("--job-days", min=0.0, help="Also jobs that ended so many days ago.")
    ] = None,
    result_days: Annotated[
        float | None,
        typer.Option("--result-days", min=0.0, help="Also results of stages whose jobs ended so many days ago."),
    ] = None,
    quota_gib: Annotated[
        float | None,
        typer.Option("--quota-gib", min=0.0, help="Also results, then blobs of ended jobs, until no more is stored."),
    ] = None,
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """Find blobs and results that nobody needs; nothing goes without --apply."""
    quota_bytes = None if quota_gib is None else int(quota_gib * GIB)
    with Client(server, data=data) as client:
        found = client.collect_garbage(apply=apply, job_days=job_days, result_days=result_days, quota_bytes=quota_bytes)
    if as_json:
        print_document(_document(found))
    else:
        _print(found)


def _document(found: operator_pb2.CollectGarbageResponse) -> dict[str, object]:
    return {
        "applied": found.applied,
        "removals": [{"kind": r.kind, "name": r.name, "bytes": r.bytes, "reason": r.reason} for r in found.removals],
        "removal_count": found.removal_count,
        "removed_bytes": found.removed_bytes,
        "kept_bytes": found.kept_bytes,
    }


def _print(found: operator_pb2.CollectGarbageResponse) -> None:
    went = "went" if found.applied else "would go"
    if not found.removal_count:
        typer.echo(f"Nothing {went}; {bytes_text(found.kept_bytes)} are kept.")
        return
    rows = [(r.kind, r.name[:NAME_CHARACTERS], bytes_text(r.bytes), r.reason) for r in found.removals[:SHOWN_REMOVALS]]
    print_table(f"What {went}", ("what", "name", "size", "why"), rows)
    if found.removal_count > SHOWN_REMOVALS:
        typer.echo(f"… and {found.removal_count - SHOWN_REMOVALS} more")
    typer.echo(f"{bytes_text(found.removed_bytes)} {went}, {bytes_text(found.kept_bytes)} are kept.")
    if not found.applied:
        typer.echo("Nothing was removed: say --apply to remove it.", err=True)
