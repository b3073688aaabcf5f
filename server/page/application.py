"""The routes: pages, the stream of a running job, downloads, and the way in."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import jinja2
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from pu_engine import pipeline
from punnet import __version__
from punnet.errors import PunnetError, make_error
from server import job_table
from server.blobs import BlobStore
from server.folders import DataFolder
from server.job_table import FINAL, ArtifactRow, JobRow
from server.page import charts
from server.page.access import Sessions
from server.page.guard import COOKIE, REPORT_POLICY, Guard, peer_of, session_secret, too_many_guesses
from server.page.view import REPORT_PAGE, live_view, moment, results_view, span, stage_at
from server.page_token import parse_token, to_token
from server.pool_table import SharedPools, pools_after
from server.store import Store, now_microseconds
from server.watch import Watch

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
SHARED_STYLE = Path(pipeline.__file__).parent / "pages" / "page.css"  # one look for the reports and this page
PAGE_SIZE, POOLS = 50, 200
FORM_BYTES = 4096
KIND_WORDS = {
    "compress": "compression",
    "validate": "validation",
    "inspect": "inspection",
    "plan": "plan",
    "ingest": "ingest of a pool",
    "verify_pool": "check of a pool",
    "describe_pool": "description of a pool",
    "build": "build on a device",
}


class PageApplication:
    """The page of one server."""

    def __init__(
        self,
        *,
        store: Store,
        data: DataFolder,
        blobs: BlobStore,
        watch: Watch,
        sessions: Sessions,
        shared_pools: SharedPools,
    ) -> None:
        self._shared_pools = shared_pools
        self._store = store
        self._data = data
        self._blobs = blobs
        self._watch = watch
        self._sessions = sessions
        self._templates = _environment()
        self.streams = 0  # watchers of running jobs; each is a look that keeps an idle server up

    def asgi(self) -> ASGIApp:
        """The application, behind its guard."""
        routes = [
            Route("/", self._jobs),
            Route("/enter", self._enter, methods=["POST"]),
            Route("/leave", self._leave, methods=["POST"]),
            Route("/static/page.css", self._style),
            Route("/jobs/{job_id}", self._job),
            Route("/jobs/{job_id}/events", self._events),
            Route("/jobs/{job_id}/report", self._report),
            Route("/jobs/{job_id}/files/{path:path}", self._file),
        ]
        app = Starlette(routes=routes, exception_handlers={PunnetError: self._refuse, 404: self._missing, 500: _defect})
        app.mount("/static", StaticFiles(directory=HERE / "static"))
        return Guard(app, sessions=self._sessions, refused=self._ask)

    async def _jobs(self, request: Request) -> Response:
        token = request.query_params.get("page", "")
        before = parse_token(token, (int, str)) if token else None
        tenant = _tenant(request)
        rows = await self._store.read(job_table.jobs_before, tenant, before, PAGE_SIZE + 1)
        page, more = rows[:PAGE_SIZE], rows[PAGE_SIZE:]
        subjects = await self._store.read(job_table.subjects, tenant, [job.id for job in page])
        pools = await self._store.read(pools_after, tenant, "", POOLS, self._shared_pools())
        older = to_token(page[-1].created, page[-1].id) if more else ""
        active = any(job.state not in FINAL for job in page)
        return self._page(
            "jobs.html", jobs=page, subjects=subjects, pools=pools, older=older, newest=not token, active=active
        )

    async def _job(self, request: Request) -> Response:
        job = await self._found(request)
        subjects = await self._store.read(job_table.subjects, job.tenant, [job.id])
        live = await self._live(job)
        results = await asyncio.to_thread(results_view, self._data, job) if job.artifacts else None
        return self._page("job.html", live=live, job=job, subject=subjects.get(job.id, ""), results=results)

    async def _live(self, job: JobRow) -> Any:
        key = (job.tenant, job.id)
        return await asyncio.to_thread(live_view, self._data, job, self._watch.tick(key), self._watch.curve(key))

    async def _events(self, request: Request) -> Response:
        job = await self._found(request)
        return StreamingResponse(self._stream(job), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def _stream(self, job: JobRow) -> AsyncIterator[str]:
        """The live part, anew at every event and tick; then the word that the job has ended."""
        self.streams += 1
        try:
            async for message in self._watch.watch(job.tenant, job.id, 0):
                if message.WhichOneof("update") == "heartbeat":
                    yield ": still there\n\n"
                    continue
                row = await self._store.read(job_table.job_by_id, job.tenant, job.id)
                if row is None:
                    break
                html = self._templates.get_template("live.html").render(live=await self._live(row))
                yield _event("live", html, message.event.seq)
            yield _event("ended", "", 0)
        except PunnetError:  # the server goes down, or the job was deleted: the browser asks again
            return
        finally:
            self.streams -= 1

    async def _report(self, request: Request) -> Response:
        artifact = _artifact(await self._found(request), REPORT_PAGE)
        headers = {"Content-Security-Policy": REPORT_POLICY, "Content-Length": str(artifact.size)}
        return StreamingResponse(self._bytes(artifact), media_type="text/html; charset=utf-8", headers=headers)

    async def _file(self, request: Request) -> Response:
        artifact = _artifact(await self._found(request), request.path_params["path"])
        name = quote(Path(artifact.path).name)
        headers = {
            "Content-Disposition": f"attachment; filename*=UTF-8''{name}",
            "Content-Length": str(artifact.size),
            "ETag": f'"{artifact.sha256}"',
        }
        return StreamingResponse(self._bytes(artifact), media_type="application/octet-stream", headers=headers)

    async def _bytes(self, artifact: ArtifactRow) -> AsyncIterator[bytes]:
        async for chunk, _ in self._blobs.read(self._data.root / artifact.folder / artifact.path, 0):
            yield chunk

    async def _found(self, request: Request) -> JobRow:
        job_id = request.path_params["job_id"]
        job = await self._store.read(job_table.job_by_id, _tenant(request), job_id)
        if job is None:
            raise make_error("JOB_NOT_FOUND", f"There is no job {job_id[:64]!r}.", "The list has all jobs.")
        return job

    async def _enter(self, request: Request) -> Response:
        peer = peer_of(request.scope)
        if self._sessions.refused(peer):
            return too_many_guesses()
        token = await _form_token(request)
        secret = await self._sessions.enter(token) if token and _own_origin(request) else None
        if secret is None:
            self._sessions.failed(peer)
            return self._page("enter.html", 401, wrong=True)
        response = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, secret, httponly=True, samesite="strict", secure=secure, path="/")
        return response

    async def _leave(self, request: Request) -> Response:
        self._sessions.leave(session_secret(request.headers))
        response = RedirectResponse("/", 303)
        response.delete_cookie(COOKIE, path="/")
        return response

    async def _style(self, request: Request) -> Response:
        style = SHARED_STYLE.read_text() + (HERE / "own.css").read_text()
        return Response(style, media_type="text/css")

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that nobody let in: with the form where a person looks at the list."""
        page = "text/html" in Headers(scope=scope).get("accept", "")
        answer: Response = self._page("enter.html", 401, wrong=False) if page else Response("Unauthorized\n", 401)
        answer.headers["WWW-Authenticate"] = "Bearer"
        await answer(scope, receive, send)

    async def _refuse(self, request: Request, error: Exception) -> Response:
        """One of our own errors, in its words."""
        status = 404 if isinstance(error, PunnetError) and error.code == "JOB_NOT_FOUND" else 400
        return self._page("refused.html", status, message=str(getattr(error, "message", error)))

    async def _missing(self, request: Request, error: Exception) -> Response:
        return self._page("refused.html", 404, message="There is no such page.")

    def _page(self, name: str, status: int = 200, **content: Any) -> HTMLResponse:
        return HTMLResponse(self._templates.get_template(name).render(version=__version__, **content), status)


async def _defect(request: Request, error: Exception) -> Response:
    """The text of an unexpected exception never leaves the server."""
    error_id = secrets.token_hex(8)
    log.error("a page failed", exc_info=error, extra={"path": request.url.path, "error_id": error_id})
    return Response(f"The server failed unexpectedly; its log has the error id {error_id}.\n", 500)


async def _form_token(request: Request) -> str:
    """The token of the form; empty where the form is not ours."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES:
            return ""
    return parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()


def _own_origin(request: Request) -> bool:
    """Whether the form came from this page; a browser always says from where."""
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers.get("host")


def _tenant(request: Request) -> str:
    return str(request.scope["tenant"])


def _artifact(job: JobRow, path: str) -> ArtifactRow:
    for artifact in job.artifacts:
        if artifact.path == path:
            return artifact
    raise make_error("JOB_NOT_FOUND", f"Job {job.id} has no file {path[:200]!r}.", "The job's page lists its files.")


def _event(name: str, html: str, seq: int) -> str:
    lines = "".join(f"data: {line}\n" for line in html.splitlines()) or "data:\n"
    number = f"id: {seq}\n" if seq else ""
    return f"{number}event: {name}\n{lines}\n"


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        moment=moment,
        span=span,
        percent=lambda share: f"{100 * share:.1f} %",
        number=lambda value: f"{value:,}",
        bytes=_byte_size,
        stage_at=stage_at,
    )
    environment.globals.update(
        curve=charts.curve, bar=charts.bar, now=now_microseconds, kinds=KIND_WORDS, final=FINAL, urlquote=quote
    )
    return environment


def _byte_size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
