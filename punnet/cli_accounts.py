"""`punnet token` and `punnet pool share|unshare`: the operator's commands on a data folder, which the server runs."""

from __future__ import annotations

import typer

from punnet.cli_serve import run_server_module
from punnet.private_server import data_folder

MODULE = "server.accounts_command"
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def token(ctx: typer.Context) -> None:
    """Make, list and revoke tokens of a server's data folder, see `punnet token --help`."""
    _run("token", *ctx.args)


def share(ctx: typer.Context) -> None:
    """Let every tenant use a tenant's pool; works on a server's data folder, see `punnet pool share --help`."""
    _run("pool", "share", *ctx.args)


def unshare(ctx: typer.Context) -> None:
    """End that a pool is shared."""
    _run("pool", "unshare", *ctx.args)


def _run(*arguments: str) -> None:
    stated = any(argument.split("=")[0] in ("--data", "--help", "-h") for argument in arguments)
    run_server_module(MODULE, [*arguments, *([] if stated else ["--data", str(data_folder())])])
