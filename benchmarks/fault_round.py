"""One round: a fresh server, a user's work, one fault in it, and then the question whether anything was lost."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cutting_proxy import CuttingProxy
from benchmarks.fault_checks import left_behind
from benchmarks.fault_injection import FAULTS, Scene, make_clock, small_disk
from benchmarks.fault_work import PARTS, JobEnd, Subject, Work
from benchmarks.ray_cluster import LocalCluster
from benchmarks.server_process import ServerProcess

WORK_SECONDS = 900.0
START_SECONDS = 300.0  # a driver of Ray takes long on a busy machine
SHARE_OF_STORES = 0.5  # of the rounds on a cluster
Digests = dict[str, dict[str, str]]  # kind of job -> reproducible artifact -> sha256


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Where the server of a round, and its stages, work."""

    data: Path
    stages: Path  # below which the stages have their folders
    options: tuple[str, ...] = ("--threads", "1")
    environment: Mapping[str, str] = field(default_factory=dict)
    clock: Path | None = None
    cluster: LocalCluster | None = None
    store: Path | None = None  # between the server and the cluster's nodes

    def left_behind(self) -> list[str]:
        """What the cluster and the store still have once the server has ended."""
        problems = self.cluster.left_behind() if self.cluster else []
        files = [path for path in self.store.rglob("*") if path.is_file()] if self.store else []
        return [*problems, *(f"{path.relative_to(self.data.parent)} is left" for path in files)]


def calm_digests(subject: Subject, part: str) -> tuple[Digests, float]:
    """What an undisturbed run makes, and how long it takes with all checks; raises where even that has problems."""
    row = run_round(subject, part, None, seed=0, reference={})
    if row["problems"]:
        raise RuntimeError(f"the undisturbed run had problems: {row['problems']}")
    return {end["kind"]: end["digests"] for end in row["jobs"]}, row["seconds"]


def run_round(
    subject: Subject,
    part: str,
    fault: str | None,
    *,
    seed: int,
    reference: Digests,
    cluster: LocalCluster | None = None,
) -> dict[str, Any]:
    """Run one round; the row that is kept of it.

    Args:
        part: of `fault_work.PARTS`: what the user does.
        fault: of FAULTS, or None for an undisturbed run.
        cluster: on which the server runs its stages; None: as processes of its own.

    Its keys: `hit` says whether the fault struck while the user worked, `injection` what it did, `jobs` what every
    accepted job came to, `lost` how many came to neither the reference's digests nor a typed error, `problems`
    whatever else must not be.
    """
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="pnf-", dir="/tmp"))  # a socket's path is short
    row: dict[str, Any] = {"fault": fault, "seed": seed}
    try:
        row |= _outcome(folder, subject, part, fault, seed=seed, reference=reference, cluster=cluster)
        row["seconds"] = round(time.monotonic() - started, 1)
    finally:
        if row.get("problems"):
            row["kept"] = str(folder)
        else:
            shutil.rmtree(folder)
    return row


def _outcome(
    folder: Path,
    subject: Subject,
    part: str,
    fault: str | None,
    *,
    seed: int,
    reference: Digests,
    cluster: LocalCluster | None,
) -> dict[str, Any]:
    generator = random.Random(seed)
    with _ground(folder, fault, generator, cluster) as ground, contextlib.ExitStack() as stack:
        server = ServerProcess(
            folder=folder,
            data=ground.data,
            options=ground.options,
            environment=ground.environment,
            start_seconds=START_SECONDS,
        )
        server.start()
        stack.callback(server.stop)  # once more does no harm; a disk is not unmounted below a server
        work, injection = _disturbed(server, subject, part, fault, generator=generator, ground=ground)
        problems = [*work.problems, *left_behind(server, subject.parcel.sha256), *ground.left_behind()]
    lost = [end for end in work.ends if not _well_ended(end, reference)]
    return {
        "hit": injection is not None,
        "injection": injection or {},
        "through_a_store": ground.store is not None,
        "jobs": [asdict(end) for end in work.ends],
        "tried_again": dict(work.refusals),
        "lost": len(lost) + len(work.accepted) - len(work.ends),
        "problems": [
            *problems,
            *(f"{end.kind} ended {end.state} {end.code} with {_differing(end, reference)}" for end in lost),
        ],
    }


@contextlib.contextmanager
def _ground(
    folder: Path, fault: str | None, generator: random.Random, cluster: LocalCluster | None
) -> Iterator[Ground]:
    if cluster is not None:
        yield _on_ray(folder, cluster, through_a_store=generator.random() < SHARE_OF_STORES)
    elif fault == "disk_full":
        with small_disk(folder / "disk"):
            data = folder / "disk" / "data"
            yield Ground(data=data, stages=data)
            shutil.copy(
                data / "server.log", folder / "server.log"
            )  # for whoever looks into a round that found something
    elif fault == "clock_jumped":
        clock, environment = make_clock(folder)
        yield Ground(data=folder / "data", stages=folder / "data", environment=environment, clock=clock)
    else:
        yield Ground(data=folder / "data", stages=folder / "data")


def _on_ray(folder: Path, cluster: LocalCluster, *, through_a_store: bool) -> Ground:
    """A server whose stages are tasks of the cluster, with a store between them or on the server's own folder."""
    data, store = folder / "data", folder / "store"
    options = (*Ground.options, "--runner", "ray")
    if through_a_store:
        store.mkdir()
        options += ("--store", f"file://{store}")
    return Ground(
        data=data,
        stages=cluster.scratch if through_a_store else data,
        options=options,
        environment={"RAY_ADDRESS": cluster.address},
        cluster=cluster,
        store=store if through_a_store else None,
    )


def _disturbed(
    server: ServerProcess,
    subject: Subject,
    part: str,
    fault: str | None,
    *,
    generator: random.Random,
    ground: Ground,
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
            scene = Scene(
                server=server,
                proxy=proxy,
                random=generator,
                done=work.done,
                moments=moments,
                stages=ground.stages,
                clock=ground.clock,
                cluster=ground.cluster,
            )
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
