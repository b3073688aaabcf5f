"""The result table, printed at the end of a run: docs/frameworks.md is its output."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

import pytest

HEADINGS = ("export", "as trained", "as found", "same prediction", "accuracy", "interval", "batch", "taps", "error")
ROWS = pytest.StashKey[list[tuple[str, ...]]]()
PACKAGES = (
    "torch",
    "onnxruntime",
    "onnxconverter-common",
    "tensorflow-cpu",
    "keras",
    "tf2onnx",
    "jax",
    "flax",
    "jax2onnx",
    "scikit-learn",
    "skl2onnx",
    "lightgbm",
    "xgboost-cpu",
    "onnxmltools",
    "paddlepaddle",
    "paddle2onnx",
)

Record = Callable[[tuple[str, ...]], None]


@pytest.fixture
def record(pytestconfig: pytest.Config) -> Record:
    """Add a row to the table."""
    return pytestconfig.stash.setdefault(ROWS, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the rows as Markdown."""
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("exports taken in")
        for cells in (HEADINGS, ("---",) * len(HEADINGS), *rows):
            terminalreporter.write_line(f"| {' | '.join(cells)} |")
        versions = {name: package_version(name) for name in PACKAGES}
        terminalreporter.write_line(", ".join(f"{name} {text}" for name, text in versions.items() if text) + ".")


def package_version(name: str) -> str:
    """The installed version; "" where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""
