"""Students by name, from a child: what can be built is known to the engine only, whose imports are heavy."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pu_engine.pipeline import ENGINE_VERSION
from punnet.errors import PunnetError, make_error
from server.capabilities import installed_packages
from server.folders import remove_tree, write_json
from server.processes import signal_group

log = logging.getLogger(__name__)

CHILD_SECONDS = 120.0
AUTO = "auto"


class StudentCatalogue:
    """Answers of `pu_engine.student.catalogue`, kept below the data folder by the versions that gave them."""

    def __init__(self, folder: Path) -> None:
        versions = {"engine": ENGINE_VERSION, **installed_packages()}
        name = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = folder / name
        self._one_child = asyncio.Lock()
        self._asking: dict[tuple[str, ...], asyncio.Task[Mapping[str, Any]]] = {}

    async def list(self, name_contains: str) -> list[dict[str, Any]]:
        """Rows of name, parameters, macs, size, source and latency, by name; recommended ones where the text is empty.

        What was timed on this machine before has its counts and latency.
        """
        answer = await self._ask("--all" if name_contains else "--contains=")
        rows = [row for row in answer["students"] if name_contains.lower() in row["name"]]
        rows = await asyncio.to_thread(lambda: [self._timed_before(row) or row for row in rows])
        return sorted(rows, key=lambda row: str(row["name"]))

    async def time(self, name: str, size: int) -> dict[str, Any]:
        """The row of one student, timed on this machine at a size; 0: its own. What is known is not timed again.

        Raises:
            PunnetError: STUDENT_UNKNOWN, STUDENT_UNSUPPORTED.
        """
        known = {row["name"]: row for row in (await self._ask("--all"))["students"]}
        if name not in known:
            raise make_error(
                "STUDENT_UNKNOWN", f"There is no student named {name!r}.", "`punnet students` lists the names."
            )
        answer = await self._ask(f"--time={name}", f"--size={size or known[name]['size']}")
        if error := answer.get("error"):
            raise make_error(error["code"], error["message"], error["remedy"], error["details"])
        row: dict[str, Any] = answer["students"][0]
        return row

    def _timed_before(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        path = self._path((f"--time={row['name']}", f"--size={row['size']}"))
        if not path.is_file():
            return None
        rows: list[dict[str, Any]] = json.loads(path.read_text()).get("students", [])
        return rows[0] if rows else None

    def _path(self, options: Sequence[str]) -> Path:
        """Where an answer is kept. Times are this machine's: the folder may be another's tomorrow."""
        asked = (*options, machine()) if options[0].startswith("--time=") else options
        return self._folder / f"{hashlib.sha256(' '.join(asked).encode()).hexdigest()[:32]}.json"

    async def check(self, name: str) -> None:
        """Raises PunnetError STUDENT_UNKNOWN or STUDENT_UNSUPPORTED; empty and `auto` are always known."""
        if name in ("", AUTO):
            return
        answer = await self._ask(f"--check={name}")
        error = answer.get("error")
        if error:
            raise make_error(
                error["code"], f"Field student.name: {error['message']}", error["remedy"], error["details"]
            )

    async def _ask(self, *options: str) -> Mapping[str, Any]:
        """The answer, which all wait for who ask meanwhile.

        It is not given up with a caller: one whose deadlines are shorter than the child's start would never get it.
        """
        asking = self._asking.get(options)
        if asking is None:
            asking = self._asking[options] = asyncio.create_task(self._answer(options))
            asking.add_done_callback(lambda _: self._asking.pop(options))
        return await asyncio.shield(asking)

    async def _answer(self, options: tuple[str, ...]) -> Mapping[str, Any]:
        path = self._path(options)
        async with self._one_child:
            if path.is_file():
                kept: Mapping[str, Any] = json.loads(await asyncio.to_thread(path.read_text))
                return kept
            answer: Mapping[str, Any] = await _run_child(options, self._folder / "child")
            # There are as many other answers as students; unknown names have no end.
            if answer.get("error", {}).get("code") != "STUDENT_UNKNOWN":
                await asyncio.to_thread(write_json, path, answer)
        return answer


@functools.cache
def machine() -> str:
    """What this machine's times depend on: its processor by name and its cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()}, {os.cpu_count()} cores"


async def _run_child(options: Sequence[str], workdir: Path) -> Any:
    """The child's answer; it is gone when this returns or is cancelled, and dies with the server."""
    await asyncio.to_thread(workdir.mkdir, mode=0o700, parents=True, exist_ok=True)
    confine = ("--workdir", str(workdir), "--profile", "training", "--parent", str(os.getpid()))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", "server.confine", *confine, "--"),
        *(sys.executable, "-I", "-m", "pu_engine.student.catalogue", "--json", *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), CHILD_SECONDS)
    except TimeoutError:
        raise _unavailable(f"it took more than {CHILD_SECONDS:.0f} seconds") from None
    finally:
        signal_group(process.pid, signal.SIGKILL)
        await process.wait()
        await asyncio.to_thread(remove_tree, workdir)
    try:
        return json.loads(output)
    except ValueError as error:
        log.error("students can't be listed", extra={"stderr": errors.decode(errors="replace")[-4000:]})
        raise _unavailable(f"exit status {process.returncode}") from error


def _unavailable(reason: str) -> PunnetError:
    return make_error(
        "STAGE_CRASHED", f"The catalogue of students failed: {reason}.", "Report it with the server's log."
    )
