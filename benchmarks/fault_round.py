"""One round: a fresh server, a user's work, one fault in it, and then the question whether anything was lost."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.cutting_proxy import CuttingProxy
from benchmarks.fault_checks import left_behind
from benchmarks.fault_injection import FAULTS, Scene, make_clock, small_disk
from benchmarks.fault_work import PARTS, JobEnd, Subject, Work
from benchmarks.server_process import ServerProcess

WORK_SECONDS = 900.0
Digests = dict[str, dict[str, str]]  # kind of job -> reproducible artifact -> sha256


def calm_digests(subject: Subject, part: str) -> tuple[Digests, float]:
    """What an undisturbed run makes, and how long it takes with all checks; raises where even that has problems."""
    row = run_round(subject, part, None, seed=0, reference={})
    if row["problems"]:
        raise RuntimeError(f"the undisturbed run had problems: {row['problems']}")
    return {end["kind"]: end["digests"] for end in row["jobs"]}, row["seconds"]


def run_round(subject: Subject, part: str, fault: str | None, *, seed: int, reference: Digests) -> dict[str, Any]:
    """Run one round; the row that is kept of it.

    Args:
        part: of `fault_work.PARTS`: what the user does.
        fault: of FAULTS, or None for an undisturbed run.

    Its keys: `hit` says whether the fault struck while the user worked, `injection` what it did, `jobs` what every
    accepted job came to, `lost` how many came to neither the reference's digests nor a typed error, `problems`
    whatever else must not be.
    """
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="pnf-", dir="/tmp"))  # a socket's path is short
    row: dict[str, Any] = {"fault": fault, "seed": seed}
    try:
        row |= _outcome(folder, subject, part, fault, seed=seed, reference=reference)
        row["seconds"] = round(time.monotonic() - started, 1)
    finally:
        if row.get("problems"):
            row["kept"] = str(folder)
        else:
            shutil.rmtree(folder)
    return row


def _outcome(
    folder: Path, subject: Subject, part: str, fault: str | None, *, seed: int, reference: Digests
) -> dict[str, Any]:
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(_data_folder(folder, small=fault == "disk_full"))
        clock, environment = make_clock(folder) if fault == "clock_jumped" else (None, {})
        server = ServerProcess(folder=folder, data=data, options=("--threads", "1"), environment=environment)
        server.start()
        stack.callback(server.stop)  # once more does no harm; a disk is not unmounted below a server
        work, injection = _disturbed(server, subject, part, fault, generator=random.Random(seed), clock=clock)
        problems = [*work.problems, *left_behind(server, subject.parcel.sha256)]
    lost = [end for end in work.ends if not _well_ended(end, reference)]
    return {
        "hit": injection is not None,
        "injection": injection or {},
        "jobs": [asdict(end) for end in work.ends],
        "tried_again": dict(work.refusals),
        "lost": len(lost) + len(work.accepted) - len(work.ends),
        "problems": [
            *problems,
            *(f"{end.kind} ended {end.state} {end.code} with {_differing(end, reference)}" for end in lost),
        ],
    }


@contextlib.contextmanager
def _data_folder(folder: Path, *, small: bool) -> Iterator[Path]:
    with small_disk(folder / "disk") if small else contextlib.nullcontext():
        yield folder / "disk" / "data" if small else folder / "data"
        if small:  # for whoever looks into a round that found something
            shutil.copy(folder / "disk" / "data" / "server.log", folder / "server.log")


def _disturbed(
    server: ServerProcess,
    subject: Subject,
    part: str,
    fault: str | None,
    *,
    generator: random.Random,
    clock: Path | None,
) -> tuple[Work, dict[str, Any] | None]:
    """The user's work, done or given up, and what the fault did to it."""
    over = threading.Event()
    with CuttingProxy(server.folder / "p", server.socket) as proxy:
        fetched = server.folder / "fetched"
        work = Work(address=proxy.address, subject=subject, folder=fetched, over=over, part=part)
        thread = threading.Thread(target=work.run, name="work", daemon=True)
        thread.start()
        injection = None
        if fault is not None:
            moments = ("upload", "ingest", *PARTS[part])
            scene = Scene(server=server, proxy=proxy, random=generator, done=work.done, moments=moments, clock=clock)
            injection = FAULTS[fault](scene)
        over.set()
        thread.join(WORK_SECONDS)
        if thread.is_alive():
            work.problems.append(f"the work has not ended {WORK_SECONDS:g} seconds after the fault")
    return work, injection


def _well_ended(end: JobEnd, reference: Digests) -> bool:
    if end.state == "SUCCEEDED":
        return not reference or end.digests == reference[end.kind]
    return end.state == "FAILED" and end.typed


def _differing(end: JobEnd, reference: Digests) -> list[str]:
    """Artifacts that are not those of the undisturbed run."""
    wanted = reference.get(end.kind, {})
    return sorted(name for name in wanted.keys() | end.digests.keys() if wanted.get(name) != end.digests.get(name))
