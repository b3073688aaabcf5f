"""Fixtures: a server process of a test's own, or of a module's."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.running_server import SLOW_IMAGES, RunningServer, image_tar


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: a socket's has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def server(folder: Path) -> Iterator[RunningServer]:
    running = RunningServer(folder).start()
    yield running
    running.close()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RunningServer]:
    """One server for all tests of a module that leave it as it was."""
    path = Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    running = RunningServer(path, options=("--reflection",)).start()
    yield running
    running.close()
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def slow_tar() -> bytes:
    """A tar whose ingest takes seconds, so that a test can interrupt it."""
    return image_tar(SLOW_IMAGES, side=64)
