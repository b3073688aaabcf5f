"""Who may look: a token gives a session, and the session's cookie shows the tenant's jobs.

`TokenCheck` is the one seam to the accounts: it is asked at every request, so that a revoked token ends its sessions.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from server.accounts import Accounts

# A token that the caller presents -> the tenant whose jobs it may read; None where it opens nothing.
TokenCheck = Callable[[str], Awaitable[str | None]]

SESSION_BYTES = 32
SESSION_SECONDS = 12 * 3600.0
MOST_SESSIONS = 1000
FAILURES_A_MINUTE = 10
MINUTE = 60.0


def one_key(key: str, tenant: str) -> TokenCheck:
    """The check of a server without accounts: one key for all that it has."""

    async def check(token: str) -> str | None:
        return tenant if hmac.compare_digest(token.encode(), key.encode()) else None

    return check


def reader(accounts: Accounts) -> TokenCheck:
    """The check of a server with accounts: a live token that may read opens its tenant's jobs."""

    async def check(token: str) -> str | None:
        found = accounts.authenticate(token)
        return found.tenant if found is not None and "read" in found.scopes else None

    return check


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    token: str
    ends: float


class Sessions:
    """Sessions in memory: they end with the server, after half a day, or with their token."""

    def __init__(self, check: TokenCheck) -> None:
        self._check = check
        self._sessions: dict[str, _Session] = {}
        self._failures: dict[str, deque[float]] = {}

    async def enter(self, token: str) -> str | None:
        """A new session's secret for a token that opens something."""
        if await self._check(token) is None:
            return None
        while len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        secret = secrets.token_urlsafe(SESSION_BYTES)
        self._sessions[secret] = _Session(token=token, ends=time.monotonic() + SESSION_SECONDS)
        return secret

    async def tenant_of_session(self, secret: str) -> str | None:
        """Whose jobs a session shows."""
        session = self._sessions.get(secret)
        if session is None:
            return None
        tenant = await self._check(session.token) if time.monotonic() < session.ends else None
        if tenant is None:
            self.leave(secret)
        return tenant

    async def tenant_of_token(self, token: str) -> str | None:
        """Whose jobs a bearer token shows."""
        return await self._check(token)

    def leave(self, secret: str) -> None:
        """End a session."""
        self._sessions.pop(secret, None)

    def failed(self, peer: str) -> None:
        """Note that a peer presented a token that opens nothing."""
        if len(self._failures) >= MOST_SESSIONS:
            del self._failures[next(iter(self._failures))]
        self._failures.setdefault(peer, deque(maxlen=FAILURES_A_MINUTE)).append(time.monotonic())

    def refused(self, peer: str) -> bool:
        """Whether a peer has guessed too often within the last minute."""
        failures = self._failures.get(peer, deque())
        return len(failures) == FAILURES_A_MINUTE and time.monotonic() - failures[0] < MINUTE
