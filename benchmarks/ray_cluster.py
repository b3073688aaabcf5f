"""A Ray cluster of this machine, for benchmarks that use one and break it. Needs the extra `ray`."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OBJECT_STORE_BYTES = 80 << 20
JOIN_SECONDS = 300.0  # of a node; Ray's own limit of 30 s is too short for a busy machine
SETTLE_SECONDS = 120.0  # until the cluster has noticed that a driver is gone
POLL_SECONDS = 0.1
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # of a node, beside its workers
IDLE = "ray::IDLE"  # a worker that Ray keeps ready for whoever comes


class LocalCluster:
    """A head without a CPU, and nodes of one CPU each."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        """`cluster` is Ray's; nodes have their TMPDIR in the folder."""
        self._cluster = cluster
        self.scratch = folder / "t"
        self.scratch.mkdir()

    @property
    def address(self) -> str:
        """Of its head, for RAY_ADDRESS."""
        return str(self._cluster.address)

    @property
    def raylets(self) -> list[int]:
        """The process that is each node, without the head."""
        return sorted(_raylet(node) for node in self._cluster.worker_nodes)

    def add_node(self) -> None:
        """Start a node and wait until the cluster has it; raises TimeoutError."""
        options = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES, "env_vars": {"TMPDIR": str(self.scratch)}}
        node = self._cluster.add_node(wait=False, **options)
        nodes = self._cluster.global_state.node_table
        wait_until(lambda: any(n["RayletSocketName"] == node.raylet_socket_name for n in nodes()), JOIN_SECONDS)

    def kill_node(self, raylet: int) -> None:
        """Kill a node as a power cut would: its raylet and everything that it started."""
        node = next(node for node in self._cluster.worker_nodes if _raylet(node) == raylet)
        kill([raylet, *descendants(raylet)])
        self._cluster.remove_node(node, allow_graceful=False)  # reaps it

    def workers(self) -> dict[int, str]:
        """Process id -> title of each worker on any node: `ray::` and what it runs."""
        raylets = {*self.raylets, _raylet(self._cluster.head_node)}
        found = {pid: title(pid) for pid, parent in parents().items() if parent in raylets}
        return {pid: name for pid, name in found.items() if name.startswith("ray::") and name not in AGENTS}

    def holders(self, pid: int) -> tuple[int, int] | None:
        """The worker and the node that a process is below; None where it has ended or is below none."""
        raylets, above = set(self.raylets), parents()
        while (parent := above.get(pid)) is not None:
            if parent in raylets:
                return pid, parent
            pid = parent
        return None

    def left_behind(self) -> list[str]:
        """What is still there of drivers that have ended, in words, once the cluster has had time to notice."""
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: not self._left(), SETTLE_SECONDS)
        return self._left()

    def _left(self) -> list[str]:
        state = self._cluster.global_state
        free = state.available_resources_per_node()
        taken = {
            node: total["CPU"] - free.get(node, {}).get("CPU", 0.0)
            for node, total in state.total_resources_per_node().items()
            if "CPU" in total
        }
        return [
            *(f"job {job['JobID']} of the cluster goes on" for job in state.job_table() if not job["IsDead"]),
            *(f"{cpus:g} CPUs of node {node[:8]} are taken" for node, cpus in taken.items() if cpus),
            *(f"worker {pid} runs {name}" for pid, name in self.workers().items() if name != IDLE),
            *(f"{folder.name} is left on a node" for folder in self.scratch.glob("punnet-task-*")),
        ]


@contextlib.contextmanager
def started_cluster(nodes: int) -> Iterator[LocalCluster]:
    """So many nodes; they, and their files, are gone at the end."""
    set_key()
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="pnr-", dir="/tmp"))  # a socket's path is short
    head = {"num_cpus": 0, "object_store_memory": OBJECT_STORE_BYTES, "temp_dir": str(folder), "wait": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    try:
        wait_until(lambda: bool(cluster.global_state.node_table()), JOIN_SECONDS)
        started = LocalCluster(cluster, folder)
        for _ in range(nodes):
            started.add_node()
        yield started
    finally:
        below = [pid for node in cluster.list_all_nodes() for pid in descendants(_raylet(node))]
        cluster.shutdown()
        wait_until(lambda: not any(map(title, below)), JOIN_SECONDS)  # they write into the folder
        shutil.rmtree(folder)


def set_key() -> None:
    """One key for this process's clusters and for who uses them; before Ray is imported, which reads it once."""
    key = os.environ.get("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": key}


def kill(pids: list[int]) -> None:
    """SIGKILL to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """Processes below a process."""
    above = parents()
    found, level = [], [pid]
    while level:
        level = [child for child, parent in above.items() if parent in level]
        found += level
    return found


def parents() -> dict[int, int]:
    """The parent of each process."""
    found: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found


def title(pid: int) -> str:
    """What a process calls itself; "" where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Poll; raises TimeoutError where it does not come to hold."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"what was waited for has not come within {seconds:g} s")
        time.sleep(POLL_SECONDS)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)
