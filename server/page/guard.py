"""What stands before every route: the headers of each answer, and the tenant of each request."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.page.access import Sessions

COOKIE = "punnet_session"
OPEN_PATHS = ("/enter", "/static/")
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# A stage that ran a stranger's model wrote the report: it may show itself, and do nothing else.
REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a form would say that it came from nowhere
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Guard:
    """ASGI: adds the headers; lets nobody in whom no session or bearer token lets in.

    Args:
        refused: answers a request that is not let in.
    """

    def __init__(self, app: ASGIApp, *, sessions: Sessions, refused: ASGIApp) -> None:
        self._app = app
        self._sessions = sessions
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if scope["path"].startswith(OPEN_PATHS):
            await self._app(scope, receive, with_headers)
            return
        peer = peer_of(scope)
        if self._sessions.refused(peer):
            await too_many_guesses()(scope, receive, with_headers)
            return
        tenant = await self._tenant(Headers(scope=scope), peer)
        if tenant is None:
            await self._refused(scope, receive, with_headers)
            return
        scope["tenant"] = tenant
        await self._app(scope, receive, with_headers)

    async def _tenant(self, headers: Headers, peer: str) -> str | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token:
            tenant = await self._sessions.tenant_of_token(token.strip())
            if tenant is None:
                self._sessions.failed(peer)
            return tenant
        return await self._sessions.tenant_of_session(session_secret(headers))


def session_secret(headers: Headers) -> str:
    """The session's secret in the request's cookie; empty where there is none."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def peer_of(scope: Scope) -> str:
    """The address that the request came from."""
    return str(scope["client"][0]) if scope.get("client") else ""


def too_many_guesses() -> Response:
    """The answer to a peer that has presented wrong tokens too often."""
    text = "Too many wrong tokens came from this address. Wait a minute, then try again.\n"
    return Response(text, 429, {"Retry-After": "60"}, "text/plain")
