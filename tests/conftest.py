"""Fixtures that every kind of test uses."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and teachers beside the checkout; skips where it is missing."""
    folder = ROOT.parent / "shared"
    if not (folder / "teachers" / "index.json").exists():
        pytest.skip("the real data and teachers (../shared) are not on this machine")
    return folder
