"""A line of the log is one JSON object that says what it is about."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.logs import JsonLines, about

log = logging.getLogger("tests.logs")


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "log"
    handler = logging.FileHandler(path)
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in path.read_text().splitlines()]
    log.removeHandler(handler)
    handler.close()


def test_a_line_carries_job_and_stage_only_where_it_is_about_them(lines: Any) -> None:
    with about(job="j"):
        with about(stage="intake"):
            log.info("inside", extra={"seconds": 1.5})
        log.info("between")
    log.info("outside")
    inside, between, outside = lines()
    assert (inside["job"], inside["stage"], inside["seconds"]) == ("j", "intake", 1.5)
    assert "stage" not in between
    assert "job" not in outside
    assert inside["time"].endswith("+00:00")


def test_what_runs_beside_keeps_its_own_job_also_in_threads(lines: Any) -> None:
    async def work(job: str) -> None:
        with about(job=job):
            await asyncio.sleep(0.01)
            await asyncio.to_thread(log.info, job)

    async def both() -> None:
        await asyncio.gather(work("a"), work("b"))

    asyncio.run(both())
    assert all(line["job"] == line["message"] for line in lines())


def test_an_exception_is_on_its_line(lines: Any) -> None:
    try:
        raise ValueError("secret")
    except ValueError:
        log.exception("it failed")
    (line,) = lines()
    assert "ValueError: secret" in line["traceback"]
