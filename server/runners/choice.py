"""Which runner a server has: this machine's own, or one on Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from punnet.errors import make_error
from server.object_store import open_store
from server.processes import kill_marked
from server.runners.local import LocalRunner
from server.runners.port import Runner
from server.runners.ray_link import DriverLink, driver_arguments
from server.runners.ray_runner import NamedStore, RayRunner

log = logging.getLogger(__name__)

LOCAL, RAY, RAY_SCHEME = "local", "ray", "ray://"
MARK = "PUNNET_RAY_OF"  # by which the next server finds what this one leaves
OWN_CLUSTER = "local"  # of this machine, by the driver, for as long as it lives
KEY_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerChoice:
    """What the settings say of the runner."""

    name: str  # local | ray | ray://HOST:PORT
    threads: int  # of each stage
    gpus: float  # of each stage that uses one
    weak_sandbox: bool = False  # whether nodes may run stages that they can't confine whole
    store: str | None = None  # by which inputs and results go; None: the nodes see the data folder


def check_choice(choice: RunnerChoice) -> RunnerChoice:
    """The choice; raises PunnetError REQUEST_INVALID for one that there is not."""
    known = choice.name in (LOCAL, RAY) or (choice.name.startswith(RAY_SCHEME) and choice.name != RAY_SCHEME)
    if not known:
        raise make_error("REQUEST_INVALID", f"--runner is {choice.name!r}.", "Say local, ray, or ray://HOST:PORT.")
    if choice.store and choice.name == LOCAL:
        raise make_error("REQUEST_INVALID", "--store is for a runner on Ray.", "Say --runner ray://HOST:PORT too.")
    if not 0 <= choice.gpus < 1024:
        raise make_error("REQUEST_INVALID", f"--stage-gpus is {choice.gpus:g}.", "Say how many GPUs a stage takes.")
    return choice


@asynccontextmanager
async def opened_runner(choice: RunnerChoice, data: Path, run_id: str) -> AsyncIterator[Runner]:
    """The runner while the server lives.

    Raises:
        PunnetError: REQUEST_INVALID; SERVER_START_FAILED where Ray or obstore is missing, the cluster can't be
            reached, or no node of it is large enough for a stage.
    """
    if choice.name == LOCAL:
        yield LocalRunner()
        return
    store = None
    if choice.store:
        store = NamedStore(url=choice.store, store=open_store(choice.store))
        await asyncio.to_thread(store.store.remove_below, f"runs/{run_id}")  # what an earlier server left
    left = await asyncio.to_thread(kill_marked, MARK, run_id)
    if left:
        log.warning("Ray processes of an earlier server killed", extra={"pids": left})
    environment = os.environ | {MARK: run_id}
    address = os.environ.get("RAY_ADDRESS", OWN_CLUSTER) if choice.name == RAY else choice.name
    if address == OWN_CLUSTER:  # with a key of its own, or Ray leaves one in the home folder
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(KEY_BYTES)}
    cpus = max(choice.threads, os.cpu_count() or 1)
    link = DriverLink(driver_arguments(address, cpus, run_id), data / "ray.log", environment)
    try:
        await link.start()
        _check_size(link, choice)
        yield RayRunner(link, gpus=choice.gpus, weak_sandbox=choice.weak_sandbox, store=store)
    finally:
        await link.close()


def _check_size(link: DriverLink, choice: RunnerChoice) -> None:
    """A task that no node can hold would wait without end."""
    for name, wanted, flag in (("cpus", choice.threads, "--threads"), ("gpus", choice.gpus, "--stage-gpus")):
        if wanted > link.largest[name]:
            raise make_error(
                "SERVER_START_FAILED",
                f"A stage takes {wanted:g} {name}; the largest node of the Ray cluster has {link.largest[name]:g}.",
                f"Start a larger node, or say {flag} {int(link.largest[name])}.",
            )
