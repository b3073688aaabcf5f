"""`punnet serve` and `punnet page`: the server in the foreground, and the way to its page."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from punnet import cli_options as o
from punnet.access import access
from punnet.cli_output import print_document
from punnet.errors import ServerUnavailable
from punnet.private_server import answers, data_folder, missing_packages, recorded_address

SERVE_REMEDY = "Start one with `punnet serve --bind 127.0.0.1:7860 --page 127.0.0.1:7861`."


def serve(ctx: typer.Context) -> None:
    """Serve in the foreground; takes the options of `python -m server`, see `punnet serve --help`."""
    folder = [] if any(arg.split("=")[0] == "--data" for arg in ctx.args) else ["--data", str(data_folder())]
    run_server_module("server", [*folder, *ctx.args])


def run_server_module(module: str, arguments: list[str]) -> None:
    """Become `python -m MODULE`; never returns.

    Raises:
        ServerUnavailable: SERVER_START_FAILED where this Python has no server.
    """
    missing = missing_packages()
    if missing:
        raise ServerUnavailable(
            f"This Python lacks {', '.join(missing)}.",
            code="SERVER_START_FAILED",
            remedy="Install the appliance with `pip install 'punnet[cpu]'`.",
        )
    os.execv(sys.executable, [sys.executable, "-I", "-m", module, *arguments])


def backup(
    folder: Annotated[Path, typer.Argument(metavar="DEST", help="A new folder for the copy.")],
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """Copy a data folder to DEST while its server runs."""
    _run_backup("backup", folder, data, as_json)


def restore(
    folder: Annotated[Path, typer.Argument(metavar="SOURCE", help="A folder that `punnet backup` made.")],
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """Put a backup into a data folder that is not there yet, every file verified."""
    _run_backup("restore", folder, data, as_json)


def _run_backup(verb: str, folder: Path, data: Path | None, as_json: bool) -> None:
    stated = ["--data", str(data_folder(data)), *(["--json"] if as_json else [])]
    run_server_module("server.backup", [verb, str(folder.absolute()), *stated])


def page(data: o.Data = None, as_json: o.AsJson = False) -> None:
    """Print the address of the running server's page, with the key that opens it."""
    record = server_record(data)
    if "page" not in record:
        raise ServerUnavailable(
            f"The server of {data_folder(data)} serves no page.",
            code="UNAVAILABLE",
            remedy="Start it with --page, for instance --page 127.0.0.1:7861.",
        )
    address, key = record["page"], record.get("page_key")  # with accounts the page asks for a token
    opening = address if key is None else f"{address}#{key}"
    if as_json:
        print_document({"page": address, "key": key, "open": opening})
        return
    typer.echo(opening)


def health(server: o.Server = None, data: o.Data = None) -> None:
    """Exit with 0 where the server serves, else with 13. Starts none: for containers and probes."""
    address = server or recorded_address(data_folder(data))
    if address is None or not answers(address, access()):
        where = address or str(data_folder(data))
        raise ServerUnavailable(f"No server serves at {where}.", code="UNAVAILABLE", remedy=SERVE_REMEDY)
    typer.echo(f"{address} serves.")


def server_record(data: Any) -> dict[str, Any]:
    """What the running server of a data folder wrote down; raises ServerUnavailable where none runs."""
    folder = data_folder(data)
    if recorded_address(folder) is None:
        raise ServerUnavailable(f"No server runs on {folder}.", code="UNAVAILABLE", remedy=SERVE_REMEDY)
    record: dict[str, Any] = json.loads((folder / "server.json").read_text())
    return record
