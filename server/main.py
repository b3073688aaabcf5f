"""The server's life: start, serve, stop. `python -I -m server --data DIR [--socket PATH | --listen HOST:PORT]`.

One server owns a data folder. It writes DIR/server.json when it is ready and removes it at its end; it logs JSON
lines to DIR/server.log. Exit status 2: it refuses to start, and standard error says why.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# A fork in a process with gRPC's threads crashes; children are started by exec only.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

from punnet import __version__
from punnet.errors import PunnetError
from punnet.installation import fingerprint
from punnet.large_buffers import keep_large_buffers
from punnet.settings import as_arguments
from server import listening
from server.admission import Admission
from server.audit import AuditLog
from server.blob_service import BlobService
from server.blobs import BlobStore
from server.build_service import BuildService
from server.builds import LEASE_SECONDS, BuildQueue
from server.capabilities import probe_confinement
from server.catalogue_service import CatalogueService
from server.collection import Bounds
from server.collector import Collector
from server.compression_service import CompressionService
from server.folders import DataFolder, write_json
from server.front import Calls, Front
from server.intake_requests import IntakeRequests
from server.jobs import JobEngine, Slots
from server.listening import Listening, Refused, remove_dead_socket
from server.logs import start_log
from server.meter import Meter
from server.operator_service import OperatorService
from server.page.access import Sessions, one_key, reader
from server.page.application import PageApplication
from server.page.serving import PageRefused, PageServer, page_place
from server.pool_service import PoolService
from server.quotas import WHOLE_OPTIONS, Quotas, add_quotas, quotas_of, unlimited
from server.runners.choice import RunnerChoice, check_choice, opened_runner
from server.runners.port import Runner
from server.schema import SchemaMismatch
from server.stage_execution import StageExecution
from server.storage_quota import StorageQuota
from server.store import LOCAL_TENANT, Store
from server.students import StudentCatalogue
from server.watch import Watch

log = logging.getLogger(__name__)

EXIT_REFUSED = 2
INSTALLATION = fingerprint()  # as this process started, whatever is installed later
CALLS_END_SECONDS = 2.0
STOP_SECONDS = 1.0
TERM_SECONDS = 2.0  # a stage that the server's end interrupts keeps its finished parts; it need not tidy up
IDLE_CHECKS = 10
PAGE_KEY_BYTES = 24
LARGEST_BOUND = 1e9
LARGEST_GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says."""

    data: Path
    listening: Listening
    slots: Slots
    runner: RunnerChoice
    quotas: Quotas  # of each tenant, where there are accounts
    lease_seconds: float
    idle_seconds: float | None
    reflection: bool
    allow_weak_sandbox: bool
    page: tuple[str, int] | None  # where the page listens
    metrics: tuple[str, int] | None  # where Prometheus reads
    bounds: Bounds  # of what is kept


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
    except PunnetError as error:
        print(f"punnet server: {error} ({error.code})", file=sys.stderr)
        return EXIT_REFUSED
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
    """The command line, checked.

    Raises:
        Refused: options that can't be used.
        PunnetError: UNSAFE_BIND, REQUEST_INVALID.
    """
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    listening.add_arguments(parser)
    parser.add_argument("--idle-seconds", type=float)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each stage")
    parser.add_argument("--runner", default="local", help="where stages run: local, ray or ray://HOST:PORT")
    parser.add_argument("--store", help="of stages' inputs and results: s3://BUCKET/PREFIX or file:///FOLDER")
    parser.add_argument("--stage-gpus", type=float, default=0.0, help="of a stage that can use one, on Ray")
    parser.add_argument("--cpu-slots", type=int, default=1, help="short jobs at once: inspecting, planning, ingest")
    add_quotas(parser)
    parser.add_argument("--page", metavar="HOST:PORT", help="also serve the read-only page there")
    parser.add_argument("--metrics", metavar="HOST:PORT", help="also serve Prometheus metrics there")
    parser.add_argument("--keep-jobs-days", type=float, help="jobs go that ended so many days ago")
    parser.add_argument("--keep-results-days", type=float, help="results of stages go, so many days after their jobs")
    parser.add_argument("--quota-gib", type=float, help="results, then blobs of ended jobs go beyond it")
    parser.add_argument("--lease-seconds", type=float, default=LEASE_SECONDS, help="of builds that agents take")
    parser.add_argument("--reflection", action="store_true")
    parser.add_argument("--allow-weak-sandbox", action="store_true")
    stated = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args([*as_arguments(os.environ, stated), *stated])
    for name in ("threads", "cpu_slots", *WHOLE_OPTIONS):
        if getattr(options, name) < 1:
            raise Refused(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}.")
    if not 0 < options.tenant_storage_gib < LARGEST_GIB:
        raise Refused(f"--tenant-storage-gib must be between 0 and {LARGEST_GIB}, got {options.tenant_storage_gib}.")
    if not 0 < options.lease_seconds < LARGEST_BOUND:
        raise Refused(f"--lease-seconds must be between 0 and {LARGEST_BOUND:g}, got {options.lease_seconds:g}.")
    where = listening.listening_of(options)
    return Settings(
        data=options.data.resolve(),
        listening=where,
        slots=Slots(threads=options.threads, short=options.cpu_slots),
        runner=runner_of(options, where),
        quotas=quotas_of(options),
        lease_seconds=options.lease_seconds,
        idle_seconds=options.idle_seconds,
        reflection=options.reflection,
        allow_weak_sandbox=options.allow_weak_sandbox,
        bounds=bounds_of(options),
        page=page_place(options.page, "--page") if options.page else None,
        metrics=page_place(options.metrics, "--metrics") if options.metrics else None,
    )


def runner_of(options: argparse.Namespace, where: Listening) -> RunnerChoice:
    """Where stages run; raises PunnetError REQUEST_INVALID."""
    choice = RunnerChoice(
        name=options.runner,
        threads=options.threads,
        gpus=options.stage_gpus,
        weak_sandbox=where.private or options.allow_weak_sandbox,
        store=options.store or None,
    )
    return check_choice(choice)


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
    confinement = await checked_confinement(settings)
    data = DataFolder(settings.data)
    async with opened_runner(settings.runner, data.root, data.id) as runner:
        server = Server(settings, confinement, runner)
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
    if not settings.listening.private and not settings.allow_weak_sandbox:
        raise Refused(
            f"confined children are not stopped here from: {', '.join(open_ways)}. Serve a private --socket, or say "
            "--allow-weak-sandbox if every user of this server is trusted."
        )
    log.warning("the confinement of children is weak", extra={"open": open_ways})
    return found


class Server:
    """All parts of one running server."""

    _keeping: asyncio.Task[None] | None = None  # of the collector

    def __init__(self, settings: Settings, confinement: dict[str, bool], runner: Runner) -> None:
        self._settings = settings
        data = DataFolder(settings.data)
        self._accounts = settings.listening.accounts(data)
        shared = self._accounts is not None
        quotas = settings.quotas if shared else unlimited(settings.quotas)
        self._audit = AuditLog(data.audit) if shared else None
        self._store = Store(data.database)
        self._blobs = BlobStore(data)
        storage = StorageQuota(data, quotas.storage_bytes)
        self._watch = Watch(self._store)
        self._meter = Meter(self._store, data)
        self._watch.observers.append(self._meter.note)
        self._runner = runner
        execution = StageExecution(self._store, data, self._runner, self._watch)
        self._engine = JobEngine(
            store=self._store,
            data=data,
            blobs=self._blobs,
            execution=execution,
            watch=self._watch,
            slots=settings.slots,
            quotas=quotas,
            storage=storage,
        )
        self._collector = Collector(store=self._store, data=data, engine=self._engine, bounds=settings.bounds)
        students = StudentCatalogue(settings.data / "students")
        intake = IntakeRequests(self._blobs, storage)
        self._blob_service = BlobService(self._blobs, self._store, data, storage)
        self._builds = self._build_queue(data)
        self._front = Front(
            compression=CompressionService(
                engine=self._engine,
                store=self._store,
                data=data,
                watch=self._watch,
                students=students,
                intake=intake,
                confinement=confinement,
                shared_pools=self._shared_pools,
            ),
            blob=self._blob_service,
            pool=PoolService(self._engine, self._store, self._shared_pools),
            catalogue=CatalogueService(self._engine, students, intake),
            operator=OperatorService(self._collector),
            build=BuildService(self._builds),
            reflection=settings.reflection,
            calls=Calls(
                Admission(self._accounts, quotas, certificates=settings.listening.asks_certificates), self._audit
            ),
            meter=self._meter,
        )
        self._add_web(data)

    def _add_web(self, data: DataFolder) -> None:
        """The page and the metrics, which are opened where the settings say so."""
        self._page_key = secrets.token_urlsafe(PAGE_KEY_BYTES)
        check = reader(self._accounts) if self._accounts else one_key(self._page_key, LOCAL_TENANT)
        self._page = PageApplication(
            store=self._store, data=data, blobs=self._blobs, watch=self._watch, sessions=Sessions(check),
            shared_pools=self._shared_pools,
        )  # fmt: skip
        self._page_server, self._metrics_server = PageServer(self._page.asgi()), PageServer(self._meter.asgi())

    def _shared_pools(self) -> Mapping[str, str]:
        return self._accounts.shared_pools() if self._accounts is not None else {}

    def _build_queue(self, data: DataFolder) -> BuildQueue:
        return BuildQueue(
            engine=self._engine,
            store=self._store,
            data=data,
            blobs=self._blobs,
            watch=self._watch,
            lease_seconds=self._settings.lease_seconds,
        )

    async def start(self) -> None:
        """Recover what an earlier server left, open the port, say so in server.json."""
        await self._engine.recover()
        address, tls = self._settings.listening.address, self._settings.listening.tls
        credentials = tls.credentials() if tls else None
        if self._settings.listening.private:
            remove_dead_socket(Path(address.removeprefix("unix:")))
        try:
            port = await self._front.open(address, credentials)
        except RuntimeError as error:
            why = "is another server there, or is the key not the certificate's" if tls else "is another server there"
            raise Refused(f"{address} can't be bound; {why}? ({error})") from error
        if not self._settings.listening.private:
            address = f"{'https://' if tls else ''}{address.rpartition(':')[0]}:{port}"
        self._engine.start()
        self._keeping = asyncio.create_task(self._collector.keep_bounds(), name="collector")
        await self._builds.start()
        ready = {"address": address, "pid": os.getpid(), "version": __version__, "installation": INSTALLATION}
        ready |= {"private": True} if self._settings.idle_seconds is not None else {}
        key = {}
        if self._settings.metrics:
            place = await self._open(self._metrics_server, *self._settings.metrics)
            ready["metrics"] = f"{place}metrics"
        if self._settings.page:
            ready["page"] = await self._open(self._page_server, *self._settings.page)
            # For this user alone: the file is not readable by others. With accounts the page takes their tokens.
            key = {} if self._accounts else {"page_key": self._page_key}
        await asyncio.to_thread(write_json, self._settings.data / "server.json", ready | key)
        log.info("ready", extra=ready)

    async def _open(self, server: PageServer, host: str, port: int) -> str:
        """The address where the page or the metrics are read."""
        try:
            port = await server.open(host, port)
        except OSError as error:
            raise Refused(f"{host}:{port} can't be bound: {error.strerror}.") from error
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
        await asyncio.gather(self._page_server.close(), self._metrics_server.close())
        # Stopping the server cuts a watcher off whose UNAVAILABLE is not yet sent: it would see CANCELLED.
        await self._front.calls.ended(CALLS_END_SECONDS)
        await self._front.server.stop(STOP_SECONDS)
        await ending
        await self._builds.stop()
        await asyncio.to_thread(self._blobs.close)
        await asyncio.to_thread(self._store.close)
        if self._accounts is not None:
            self._accounts.close()
        if self._audit is not None:
            self._audit.close()
        log.info("stopped")
