"""`punnet config`: a server's settings, and where each comes from."""

from __future__ import annotations

import os

import typer

from punnet import cli_options as o
from punnet.cli_output import print_document, print_table
from punnet.settings import config_file, resolve
from punnet.settings import example as example_file

config_app = typer.Typer(help="A server's settings: file, environment, flags.", no_args_is_help=True)


@config_app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def show(ctx: typer.Context, as_json: o.AsJson = False) -> None:
    """Say what `punnet serve` would run with and where each value comes from; flags of `serve` may follow."""
    found = resolve(os.environ, ctx.args)
    path = config_file(os.environ)
    if as_json:
        settings = {each.name: {"value": each.value, "source": each.source} for each in found}
        print_document({"file": str(path) if path else None, "settings": settings})
        return
    rows = [(each.name, "" if each.value is None else str(each.value), each.source) for each in found]
    print_table(f"Settings; the file is {path}" if path else "Settings; there is no file", ("", "value", "from"), rows)


@config_app.command()
def example() -> None:
    """Print a file with every setting, commented out."""
    typer.echo(example_file(), nl=False)
