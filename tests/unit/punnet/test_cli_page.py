"""docs/cli.md says every command, option and exit status."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from punnet.cli import app
from punnet.errors import TABLE
from server import accounts_command

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "cli.md").read_text()


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Of a parser of the server's and of those below it."""
    found: set[str] = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action.choices, dict):
            for below in action.choices.values():
                found |= options_of(below)
    return found


def test_every_command_is_on_the_page() -> None:
    assert [name for name, _ in commands(typer.main.get_command(app)) if f"punnet {name}" not in PAGE] == []


def test_every_option_is_on_the_page() -> None:
    options = {
        option
        for _, command in commands(typer.main.get_command(app))
        for parameter in command.params
        for option in parameter.opts
        if option.startswith("--")
    }
    assert len(options) > 30
    assert {option for option in options if f"`{option}" not in PAGE and f" {option} " not in PAGE} <= {"--limit"}
    assert "--limit N" in PAGE


def test_page_has_no_option_that_is_not_there() -> None:
    root = typer.main.get_command(app)
    known = {o for _, command in commands(root) for p in command.params for o in p.opts}
    known |= {o for p in root.params for o in p.opts} | options_of(accounts_command.parser())
    known |= {"--help", "--listen"}  # of every command, and of the server
    assert set(re.findall(r"--[a-z][a-z-]*", PAGE)) - known == set()


def test_every_exit_status_of_the_table_is_on_the_page() -> None:
    assert {row.exit_status for row in TABLE.values() if f"| {row.exit_status} |" not in PAGE} == set()
