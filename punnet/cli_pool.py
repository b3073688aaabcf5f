"""`punnet pool …`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from punnet import cli_options as o
from punnet.cli_output import bytes_text, print_document, print_table, results
from punnet.cli_page import check_writable, place
from punnet.cli_progress import run_to_end, transfer_bar
from punnet.client import Client
from punnet.v1 import pool_pb2

Paths = Annotated[
    list[str],
    typer.Argument(metavar="PATH...", help="Folders, plain tars or Parquet files of images, or URLs (fsspec)."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="1 to 63 characters of a-z, 0-9 and '-'.")]

pool_app = typer.Typer(no_args_is_help=True, help="Pools of unlabelled images.")


@pool_app.command()
def create(
    *,
    name: Name,
    paths: Paths,
    short_side: Annotated[
        int | None, typer.Option("--short-side", help="Store larger images with this short side, in pixels.")
    ] = None,
    quality: Annotated[int | None, typer.Option("--quality", help="Of the JPEGs that --short-side makes [90].")] = None,
    request_id: o.RequestId = None,
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """Upload unlabelled images and make a pool of them."""
    with Client(server, data=data) as client:
        with transfer_bar("uploading") as progress:
            job = client.create_pool(
                name,
                paths,
                short_side=short_side,
                quality=quality,
                progress=progress,
                request_id=request_id or "",
            )
        run_to_end(client, job.id)
        made = client.pool(name)
    _print_pool(made, as_json)


@pool_app.command()
def append(
    *,
    name: Name,
    paths: Paths,
    request_id: o.RequestId = None,
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """Upload more images and add them to a pool as new shards."""
    with Client(server, data=data) as client:
        with transfer_bar("uploading") as progress:
            job = client.append_pool(name, paths, progress=progress, request_id=request_id or "")
        run_to_end(client, job.id)
        made = client.pool(name)
    _print_pool(made, as_json)


@pool_app.command()
def verify(name: Name, server: o.Server = None, data: o.Data = None, as_json: o.AsJson = False) -> None:
    """Read a whole pool again and compare every byte with its sha256."""
    with Client(server, data=data) as client:
        run_to_end(client, client.verify_pool(name).id)
        pool = client.pool(name)
    if as_json:
        print_document({**pool_document(pool), "verified": True})
        return
    results().print(
        f"The pool {name} is as it was made: {pool.images:,} images, {bytes_text(pool.size)}.", highlight=False
    )


@pool_app.command()
def delete(name: Name, server: o.Server = None, data: o.Data = None, as_json: o.AsJson = False) -> None:
    """Remove a pool that no job uses."""
    with Client(server, data=data) as client:
        client.delete_pool(name)
    if as_json:
        print_document({"name": name})


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
def info(
    name: Name,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a page with a contact sheet and histograms."),
    ] = None,
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """Show one pool."""
    if html is not None:
        check_writable(html)
    with Client(server, data=data) as client:
        pool = client.pool(name)
        summary = _write_page(client, name, html) if html is not None else {}
    _print_pool(pool, as_json, summary)


def pool_document(pool: pool_pb2.Pool) -> dict[str, Any]:
    """A pool's JSON form."""
    keys = ("name", "images", "bad_images", "duplicates", "near_duplicates", "shards", "size", "sha256")
    shrink = {"short_side": pool.shrink.short_side, "quality": pool.shrink.quality}
    return {
        **{key: getattr(pool, key) for key in keys},
        "shrink": shrink if pool.HasField("shrink") else None,
        "shared": pool.shared,
        "created": pool.create_time.ToJsonString(),
    }


def _write_page(client: Client, name: str, html: Path) -> dict[str, Any]:
    """Makes and fetches the pool's page; the figures that it shows."""
    job = client.describe_pool(name)
    run_to_end(client, job.id)
    with tempfile.TemporaryDirectory(prefix="punnet-") as scratch:
        client.download(job.id, scratch)
        summary: dict[str, Any] = json.loads((Path(scratch) / "pool-summary.json").read_text())
        place(Path(scratch) / "pool.html", html)
    return {key: summary[key] for key in ("formats", "short_side_pixels", "bytes", "bad_reasons")}


def _print_pool(pool: pool_pb2.Pool, as_json: bool, summary: Mapping[str, Any] | None = None) -> None:
    document = pool_document(pool)
    if as_json:
        print_document({**document, **(summary or {})})
        return
    shrink = document["shrink"]
    texts = {
        "size": bytes_text(pool.size),
        "shrink": f"short side {shrink['short_side']}, quality {shrink['quality']}" if shrink else "no",
    }
    print_table("Pool", ("", ""), [(key, texts.get(key, value)) for key, value in document.items()])
