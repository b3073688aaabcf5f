"""`punnet pool create`, `list` and `info`, and `punnet students`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from punnet import cli_options as o
from punnet.cli_output import bytes_text, print_document, print_table
from punnet.cli_progress import run_to_end, transfer_bar
from punnet.client import Client
from punnet.v1 import pool_pb2

Name = Annotated[str, typer.Argument(metavar="NAME", help="1 to 63 characters of a-z, 0-9 and '-'.")]

pool_app = typer.Typer(no_args_is_help=True, help="Pools of unlabelled images.")


@pool_app.command()
def create(
    *,
    name: Name,
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Folders of images, or plain tars.")],
    request_id: o.RequestId = None,
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """Upload unlabelled images and make a pool of them."""
    with Client(server, data=data) as client:
        with transfer_bar("uploading") as progress:
            job = client.create_pool(name, paths, progress=progress, request_id=request_id or "")
        run_to_end(client, job.id)
        made = client.pool(name)
    _print_pool(made, as_json)


@pool_app.command("list")
def list_pools(server: o.Server = None, data: o.Data = None, as_json: o.AsJson = False) -> None:
    """List pools."""
    with Client(server, data=data) as client:
        pools = client.pools()
    if as_json:
        print_document({"pools": [pool_document(pool) for pool in pools]})
        return
    rows = [(p.name, f"{p.images:,}", f"{p.bad_images:,}", p.shards, bytes_text(p.size)) for p in pools]
    print_table("Pools", ("name", "images", "undecodable", "shards", "size"), rows)


@pool_app.command()
def info(name: Name, server: o.Server = None, data: o.Data = None, as_json: o.AsJson = False) -> None:
    """Show one pool."""
    with Client(server, data=data) as client:
        pool = client.pool(name)
    _print_pool(pool, as_json)


def students(
    name_contains: Annotated[
        str, typer.Argument(metavar="[PART]", help="A part of the name; without it, those that Punnet recommends.")
    ] = "",
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """List networks that can be trained."""
    with Client(server, data=data) as client:
        found = client.students(name_contains)
    if as_json:
        keys = ("name", "parameters", "macs", "size", "source")
        print_document({"students": [{key: getattr(s, key) for key in keys} for s in found]})
        return
    rows = [(s.name, _count(s.parameters), _count(s.macs), s.size or "-", s.source) for s in found]
    print_table("Students", ("name", "parameters", "multiply-accumulates", "size", "source"), rows)


def pool_document(pool: pool_pb2.Pool) -> dict[str, Any]:
    """A pool's JSON form."""
    keys = ("name", "images", "bad_images", "shards", "size", "sha256")
    return {**{key: getattr(pool, key) for key in keys}, "created": pool.create_time.ToJsonString()}


def _print_pool(pool: pool_pb2.Pool, as_json: bool) -> None:
    if as_json:
        print_document(pool_document(pool))
        return
    rows = [(key, value) for key, value in pool_document(pool).items() if key != "size"]
    print_table("Pool", ("", ""), [*rows, ("size", bytes_text(pool.size))])


def _count(number: int) -> str:
    return f"{number:,}" if number else "-"
