"""Which errors are the disk's and not a defect's, and what is said of them."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from server.disk_space import storage_failure


def error_of(work: Callable[[], object]) -> BaseException:
    with pytest.raises(sqlite3.Error) as raised:
        work()
    return raised.value


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "DISK_FULL"), (errno.EDQUOT, "DISK_FULL"),
                                              (errno.EIO, "DISK_FAILED"), (errno.EFBIG, "DISK_FAILED")])  # fmt: skip
def test_errors_of_the_system_are_named(number: int, code: str) -> None:
    failure = storage_failure(OSError(number, "text", "/secret/path"))
    assert failure is not None
    assert failure.code == code
    assert "secret" not in str(failure)


def test_locked_database_is_no_defect(tmp_path: Path) -> None:
    one, other = (sqlite3.connect(tmp_path / "db", timeout=0, isolation_level=None) for _ in range(2))
    one.execute("BEGIN IMMEDIATE")
    failure = storage_failure(error_of(lambda: other.execute("BEGIN IMMEDIATE")))
    one.close()
    other.close()
    assert failure is not None
    assert (failure.code, failure.details) == ("DISK_FAILED", {"why": "SQLITE_BUSY"})


def test_full_database_is_a_full_disk(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "db")
    database.execute("PRAGMA max_page_count=2")
    database.execute("CREATE TABLE t (x)")
    failure = storage_failure(error_of(lambda: database.execute("INSERT INTO t VALUES (zeroblob(100000))")))
    database.close()
    assert failure is not None
    assert failure.code == "DISK_FULL"


def test_a_wrong_statement_is_a_defect() -> None:
    database = sqlite3.connect(":memory:")
    assert storage_failure(error_of(lambda: database.execute("SELECT * FROM nowhere"))) is None
    assert storage_failure(FileNotFoundError(errno.ENOENT, "x")) is None
    database.close()
