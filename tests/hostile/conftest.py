"""A server with accounts for all tests of a module."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.accounts import AccountsServer
from tests.service.running_server import SLOW_IMAGES, image_tar

# High enough that no test meets a limit by chance; each limit has a server of its own in its test.
WIDE = ("--require-tokens", "--calls-a-minute", "100000", "--failures-a-minute", "100000", "--queued-jobs", "1000")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path: a socket's has 107 bytes at most."""
    path = Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def accounts_server() -> Iterator[AccountsServer]:
    path = Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    running = AccountsServer(path, options=WIDE)
    running.start()
    yield running
    running.close()
    shutil.rmtree(path)


@pytest.fixture(scope="session")
def slow_tar() -> bytes:
    """A tar whose ingest takes seconds, so that a test can interrupt it."""
    return image_tar(SLOW_IMAGES, side=64)
