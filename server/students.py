"""Students by name, from a child: what can be built is known to the engine only, whose imports are heavy."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pu_engine.pipeline import ENGINE_VERSION
from punnet.errors import PunnetError, make_error
from server.capabilities import installed_packages
from server.folders import write_json

log = logging.getLogger(__name__)

CHILD_SECONDS = 120.0
AUTO = "auto"


class StudentCatalogue:
    """Answers of `pu_engine.students`, kept below the data folder by the versions that gave them."""

    def __init__(self, folder: Path) -> None:
        versions = {"engine": ENGINE_VERSION, **installed_packages()}
        name = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:16]
        self._folder = folder / name
        self._one_child = asyncio.Lock()

    async def list(self, name_contains: str) -> list[dict[str, Any]]:
        """Rows of name, parameters, macs, size and source, by name; recommended ones where the text is empty."""
        answer = await self._ask("--contains", name_contains)
        return sorted(answer["students"], key=lambda row: str(row["name"]))

    async def check(self, name: str) -> None:
        """Raises PunnetError STUDENT_UNKNOWN or STUDENT_UNSUPPORTED; empty and `auto` are always known."""
        if name in ("", AUTO):
            return
        answer = await self._ask("--check", name)
        error = answer.get("error")
        if error:
            raise make_error(
                error["code"], f"Field student.name: {error['message']}", error["remedy"], error["details"]
            )

    async def _ask(self, option: str, value: str) -> Mapping[str, Any]:
        digest = hashlib.sha256(f"{option} {value}".encode()).hexdigest()[:32]
        path = self._folder / f"{digest}.json"
        async with self._one_child:
            if not path.is_file():
                answer = await _run_child(option, value)
                await asyncio.to_thread(_keep, path, answer)
            kept: Mapping[str, Any] = json.loads(await asyncio.to_thread(path.read_text))
        return kept


async def _run_child(option: str, value: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-m", "pu_engine.students", "--json", f"{option}={value}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), CHILD_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise _unavailable(f"it took more than {CHILD_SECONDS:.0f} seconds") from None
    try:
        return json.loads(output)
    except ValueError as error:
        log.error("students can't be listed", extra={"stderr": errors.decode(errors="replace")[-4000:]})
        raise _unavailable(f"exit status {process.returncode}") from error


def _keep(path: Path, answer: Any) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(path, answer)


def _unavailable(reason: str) -> PunnetError:
    return make_error(
        "STAGE_CRASHED", f"The catalogue of students failed: {reason}.", "Report it with the server's log."
    )
