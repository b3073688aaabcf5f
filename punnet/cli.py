"""The command `punnet`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from punnet import __version__
from punnet.cli_accounts import PASSED_ON, share, token, unshare
from punnet.cli_agent import agent, build
from punnet.cli_compress import compress, plan
from punnet.cli_config import config_app
from punnet.cli_doctor import doctor
from punnet.cli_gc import gc
from punnet.cli_inspect import inspect
from punnet.cli_jobs import cancel, delete, download, jobs, watch
from punnet.cli_output import print_error
from punnet.cli_pool import pool_app
from punnet.cli_serve import backup, health, page, restore, serve
from punnet.cli_students import students
from punnet.errors import PunnetError, exit_status
from punnet.large_buffers import keep_large_buffers

HELP = "Compress an ONNX image classifier into a small verified student, with few labels and an unlabelled pool."

app = typer.Typer(name="punnet", help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(compress)
app.command()(plan)
app.command()(inspect)
app.command()(jobs)
app.command()(watch)
app.command()(cancel)
app.command()(download)
app.command()(delete)
app.command()(build)
app.command()(agent)
app.add_typer(pool_app, name="pool")
app.command()(students)
app.command()(doctor)
app.command(add_help_option=False, context_settings=PASSED_ON)(serve)
app.command(add_help_option=False, context_settings=PASSED_ON)(token)
pool_app.command(add_help_option=False, context_settings=PASSED_ON)(share)
pool_app.command(add_help_option=False, context_settings=PASSED_ON)(unshare)
app.command()(page)
app.command()(health)
app.command()(gc)
app.command()(backup)
app.command()(restore)
app.add_typer(config_app, name="config")


def print_version(asked: bool) -> None:
    """Ends the command with the version, where it was asked for."""
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback(help=HELP)
def root(
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", envvar="PUNNET_TOKEN_FILE", help="Holds the token; else PUNNET_TOKEN does."),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option("--ca", envvar="PUNNET_CA", help="PEM of who signed the server's certificate.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", envvar="PUNNET_CERTIFICATE", help="PEM that this client shows.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", envvar="PUNNET_KEY", help="PEM of its key.")] = None,
    version: Annotated[  # read by its callback
        bool, typer.Option("--version", is_eager=True, callback=print_version, help="Print the version.")
    ] = False,
) -> None:
    """What stands before the command: credentials for a server with accounts, as if the variables were set."""
    stated = {"TOKEN_FILE": token_file, "CA": ca, "CERTIFICATE": certificate, "KEY": key}
    os.environ.update({f"PUNNET_{name}": str(path) for name, path in stated.items() if path is not None})


def main() -> NoReturn:
    """The console script: errors as text, remedy and code; the exit status of the error table."""
    keep_large_buffers()
    try:
        app()
    except PunnetError as error:
        print_error(error, as_json="--json" in sys.argv)
        sys.exit(exit_status(error))
    sys.exit(0)
