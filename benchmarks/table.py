"""How a benchmark shows its result: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def bar(name: str, value: float, bound: float, *, at_least: bool) -> dict[str, Any]:
    """One bar asked of a benchmark: `holds` where value >= bound (or <= bound)."""
    return {"name": name, "value": value, "bar": bound, "holds": value >= bound if at_least else value <= bound}


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; the first column is text, the others are figures."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_bars(bars: Sequence[Mapping[str, Any]]) -> None:
    """Each bar with its value and whether it holds."""
    rows = [[b["name"], f"{b['value']:.4g}", f"{b['bar']:.4g}", "yes" if b["holds"] else "NO"] for b in bars]
    print_table("Bars", ["bar", "value", "bound", "holds"], rows)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """The benchmark's result as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
