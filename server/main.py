"""The server's life: start, serve, stop. `python -I -m server --data DIR [--socket PATH | --bind HOST:PORT]`.

One server owns a data folder. It writes DIR/server.json when it is ready and removes it at its end; it logs JSON
lines to DIR/server.log. Exit status 2: it refuses to start, and standard error says why.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# A fork in a process with gRPC's threads crashes; children are started by exec only.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from punnet import __version__
from punnet.large_buffers import keep_large_buffers
from server.blob_service import BlobService
from server.blobs import BlobStore
from server.capabilities import probe_confinement
from server.catalogue_service import CatalogueService
from server.collection import Bounds
from server.collector import Collector
from server.compression_service import CompressionService
from server.folders import DataFolder, write_json
from server.front import Front
from server.intake_requests import IntakeRequests
from server.jobs import JobEngine, Slots
from server.logs import start_log
from server.operator_service import OperatorService
from server.page.access import Sessions, one_key
from server.page.application import PageApplication
from server.page.serving import PageRefused, PageServer, page_place
from server.pool_service import PoolService
from server.runners.local import LocalRunner
from server.schema import SchemaMismatch
from server.stage_execution import StageExecution
from server.store import LOCAL_TENANT, Store
from server.students import StudentCatalogue
from server.watch import Watch

log = logging.getLogger(__name__)

EXIT_REFUSED = 2
SOCKET_PATH_BYTES = 107
CALLS_END_SECONDS = 2.0
STOP_SECONDS = 1.0
TERM_SECONDS = 2.0  # a stage that the server's end interrupts keeps its finished parts; it need not tidy up
IDLE_CHECKS = 10
PROBE_SECONDS = 2.0
PAGE_KEY_BYTES = 24
LARGEST_BOUND = 1e9


class Refused(Exception):
    """The server must not start like this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says."""

    data: Path
    address: str  # as gRPC takes it
    slots: Slots
    idle_seconds: float | None
    reflection: bool
    allow_weak_sandbox: bool
    page: tuple[str, int] | None  # where the page listens
    bounds: Bounds  # of what is kept

    @property
    def private(self) -> bool:
        """Only this user reaches a socket in a folder of its own; every user of the machine reaches a port."""
        return self.address.startswith("unix:")


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT or idleness."""
    os.umask(0o077)
    keep_large_buffers()
    try:
        settings = parse_settings(arguments)
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        with owned(settings.data):
            start_log(settings.data / "server.log")
            asyncio.run(serve(settings))
    except (Refused, PageRefused, SchemaMismatch, OSError) as error:
        print(f"punnet server: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except sqlite3.DatabaseError as error:
        print(
            f"punnet server: the database in {settings.data} can't be read ({error}). Put a copy of the data folder "
            "back, or use another one.",
            file=sys.stderr,
        )
        return EXIT_REFUSED
    return 0


def parse_settings(arguments: list[str] | None) -> Settings:
    """The command line, checked; raises Refused for an address that others could reach."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path)
    where.add_argument("--bind", metavar="HOST:PORT")
    parser.add_argument("--idle-seconds", type=float)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each stage")
    parser.add_argument("--cpu-slots", type=int, default=1, help="short jobs at once: inspecting, planning, ingest")
    parser.add_argument("--queued-jobs", type=int, default=8, help="jobs that may wait")
    parser.add_argument("--page", metavar="HOST:PORT", help="also serve the read-only page there")
    parser.add_argument("--keep-jobs-days", type=float, help="jobs go that ended so many days ago")
    parser.add_argument("--keep-results-days", type=float, help="results of stages go, so many days after their jobs")
    parser.add_argument("--quota-gib", type=float, help="results, then blobs of ended jobs go beyond it")
    parser.add_argument("--reflection", action="store_true")
    parser.add_argument("--allow-weak-sandbox", action="store_true")
    options = parser.parse_args(arguments)
    for name in ("threads", "cpu_slots", "queued_jobs"):
        if getattr(options, name) < 1:
            raise Refused(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}.")
    return Settings(
        data=options.data.resolve(),
        address=socket_address(options.socket.resolve()) if options.socket else loopback_address(options.bind),
        slots=Slots(threads=options.threads, short=options.cpu_slots, queued=options.queued_jobs),
        idle_seconds=options.idle_seconds,
        reflection=options.reflection,
        allow_weak_sandbox=options.allow_weak_sandbox,
        bounds=bounds_of(options),
        page=page_place(options.page) if options.page else None,
    )


def bounds_of(options: argparse.Namespace) -> Bounds:
    """How long ended work is kept, and how much; raises Refused for what is no number of days or GiB."""
    for name in ("keep_jobs_days", "keep_results_days", "quota_gib"):
        value = getattr(options, name)
        if value is not None and not 0 <= value < LARGEST_BOUND:
            raise Refused(f"--{name.replace('_', '-')} must be from 0 to below {LARGEST_BOUND:g}, got {value}.")
    quota = options.quota_gib
    return Bounds(
        job_days=options.keep_jobs_days,
        result_days=options.keep_results_days,
        quota_bytes=None if quota is None else int(quota * 2**30),
    )


def socket_address(path: Path) -> str:
    """gRPC's name of a Unix socket; raises Refused for a path that does not fit into one."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES:
        raise Refused(f"a socket's path has at most {SOCKET_PATH_BYTES} bytes, {path} has {length}; use a shorter one.")
    return f"unix:{path}"


def loopback_address(bind: str) -> str:
    """HOST:PORT on this machine only; raises Refused otherwise: there is no TLS and no token yet."""
    host, _, port = bind.rpartition(":")
    try:
        name = "127.0.0.1" if host == "localhost" else host.strip("[]")
        loopback = ipaddress.ip_address(name).is_loopback and 0 <= int(port) <= 65535
    except ValueError:
        raise Refused(f"--bind takes an address and a port, for instance 127.0.0.1:7860; got {bind!r}.") from None
    if not loopback:
        raise Refused(f"{host} can be reached from other machines, and there is no TLS; bind 127.0.0.1 instead.")
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def remove_dead_socket(path: Path) -> None:
    """Clear the way for our socket; raises Refused where a server listens there, or where a file is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Refused(f"{path} is there and is no socket; name another path, or remove it.")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_SECONDS)
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:  # nobody listens: a dead server left it
        path.unlink(missing_ok=True)
        return
    raise Refused(f"another server listens at {path}; stop it, or name another path.")


@contextlib.contextmanager
def owned(data: Path) -> Iterator[None]:
    """Hold the data folder's lock; raises Refused where another server holds it."""
    descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another server owns {data}; stop it, or use another data folder.") from None
        yield
    finally:
        os.close(descriptor)


async def serve(settings: Settings) -> None:
    """Start, wait for the end, stop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = Server(settings, await checked_confinement(settings))
    try:
        await server.start()
        await server.until(stop)
    finally:
        await server.stop()


async def checked_confinement(settings: Settings) -> dict[str, bool]:
    """What the probe found; raises Refused where a server that others use would run strangers' files unconfined."""
    found = await probe_confinement()
    open_ways = [name for name, stopped in found.items() if not stopped] if found else ["all"]
    if not open_ways:
        return found
    if not settings.private and not settings.allow_weak_sandbox:
        raise Refused(
            f"confined children are not stopped here from: {', '.join(open_ways)}. Serve a private --socket, or say "
            "--allow-weak-sandbox if every user of this server is trusted."
        )
    log.warning("the confinement of children is weak", extra={"open": open_ways})
    return found


class Server:
    """All parts of one running server."""

    def __init__(self, settings: Settings, confinement: dict[str, bool]) -> None:
        self._settings = settings
        data = DataFolder(settings.data)
        self._store = Store(data.database)
        self._blobs = BlobStore(data)
        self._watch = Watch(self._store)
        self._runner = LocalRunner()
        execution = StageExecution(self._store, data, self._runner, self._watch)
        self._engine = JobEngine(
            store=self._store,
            data=data,
            blobs=self._blobs,
            execution=execution,
            watch=self._watch,
            slots=settings.slots,
        )
        self._collector = Collector(store=self._store, data=data, engine=self._engine, bounds=settings.bounds)
        students = StudentCatalogue(settings.data / "students")
        intake = IntakeRequests(self._blobs)
        self._blob_service = BlobService(self._blobs, self._store, data)
        self._front = Front(
            compression=CompressionService(
                engine=self._engine,
                store=self._store,
                data=data,
                watch=self._watch,
                students=students,
                intake=intake,
                confinement=confinement,
            ),
            blob=self._blob_service,
            pool=PoolService(self._engine, self._store),
            catalogue=CatalogueService(self._engine, students, intake),
            operator=OperatorService(self._collector),
            reflection=settings.reflection,
        )
        self._keeping: asyncio.Task[None] | None = None
        self._page_key = secrets.token_urlsafe(PAGE_KEY_BYTES)
        sessions = Sessions(one_key(self._page_key, LOCAL_TENANT))
        self._page = PageApplication(
            store=self._store, data=data, blobs=self._blobs, watch=self._watch, sessions=sessions
        )
        self._page_server = PageServer(self._page.asgi())

    async def start(self) -> None:
        """Recover what an earlier server left, open the port, say so in server.json."""
        await self._engine.recover()
        address = self._settings.address
        if self._settings.private:
            remove_dead_socket(Path(address.removeprefix("unix:")))
        try:
            port = await self._front.open(address)
        except RuntimeError as error:
            raise Refused(f"{address} can't be bound; is another server there? ({error})") from error
        if not self._settings.private:
            address = f"{address.rpartition(':')[0]}:{port}"
        self._engine.start()
        self._keeping = asyncio.create_task(self._collector.keep_bounds(), name="collector")
        ready = {"address": address, "pid": os.getpid(), "version": __version__}
        key = {}
        if self._settings.page:
            ready["page"] = await self._open_page(*self._settings.page)
            key = {"page_key": self._page_key}  # for this user alone: the file is not readable by others
        await asyncio.to_thread(write_json, self._settings.data / "server.json", ready | key)
        log.info("ready", extra=ready)

    async def _open_page(self, host: str, port: int) -> str:
        """The page's address."""
        try:
            port = await self._page_server.open(host, port)
        except OSError as error:
            raise Refused(f"--page {host}:{port} can't be bound: {error.strerror}.") from error
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    async def until(self, stop: asyncio.Event) -> None:
        """Until the signal, or until nobody called and nothing ran for the idle time."""
        idle = self._settings.idle_seconds
        if idle is None:
            await stop.wait()
            return
        busy_at = time.monotonic()
        while not stop.is_set():
            calls = self._front.calls
            if calls.running or self._page.streams or not self._engine.idle():
                busy_at = time.monotonic()
            if time.monotonic() - max(busy_at, calls.last_end) >= idle:
                log.info("idle", extra={"seconds": idle})
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), idle / IDLE_CHECKS)

    async def stop(self) -> None:
        """Unhealthy, no new work, watchers sent away, children ended, port closed; jobs go on at the next start."""
        log.info("stopping")
        (self._settings.data / "server.json").unlink(missing_ok=True)
        self._blob_service.draining = True
        self._runner.term_seconds = TERM_SECONDS
        await self._front.health.enter_graceful_shutdown()
        if self._keeping is not None:
            self._keeping.cancel()
        ending = asyncio.create_task(self._engine.shutdown())
        await self._watch.drain()
        await self._page_server.close()
        # Stopping the server cuts a watcher off whose UNAVAILABLE is not yet sent: it would see CANCELLED.
        await self._front.calls.ended(CALLS_END_SECONDS)
        await self._front.server.stop(STOP_SECONDS)
        await ending
        await asyncio.to_thread(self._blobs.close)
        await asyncio.to_thread(self._store.close)
        log.info("stopped")
