"""Whether a call may begin: who makes it, what its token allows, how many calls there were.

It fails closed: a method without a row in `scopes` is refused, whatever the token.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import grpc

from punnet.errors import PunnetError, make_error
from server.accounts import Accounts, Token
from server.callers import Caller
from server.quotas import Quotas, Rate, over_quota
from server.scopes import SCOPE_OF, TRANSFERS, allows, is_open
from server.store import LOCAL_TENANT

Context = grpc.aio.ServicerContext[Any, Any]
BEARER = "Bearer "
MINUTE_SECONDS = 60.0
OPEN_CALLS_RETRY_SECONDS = 5.0
PEERS = 10_000  # remembered for their failures; an attacker with more addresses gains nothing but shorter answers


class Admission:
    """Admits callers.

    Args:
        accounts: None where whoever reaches the server is its user.
        quotas: of each tenant.
        certificates: whether clients show certificates; a token then counts only beside one whose common name is its
            tenant.
    """

    def __init__(self, accounts: Accounts | None, quotas: Quotas, *, certificates: bool = False) -> None:
        self._accounts = accounts
        self._certificates = certificates
        self._calls = Rate("calls_a_minute", quotas.calls_a_minute)
        self._transfers = Rate("transfers_a_minute", quotas.transfers_a_minute)
        self._open_calls = quotas.open_calls
        self._open: Counter[str] = Counter()
        self._failures = Failures(quotas.failures_a_minute)

    def admit(self, method: str, context: Context) -> Caller:
        """Who calls; `leave` ends what this begins.

        Raises:
            PunnetError: TOKEN_INVALID, SCOPE_MISSING, QUOTA.
        """
        if self._accounts is None or is_open(method):
            return Caller(tenant=LOCAL_TENANT)
        metadata = tuple(context.invocation_metadata() or ())
        token = self._accounts.authenticate(_bearer(metadata))
        if token is None or not self._certified(token, context.auth_context()):
            raise self._failures.note(_peer_address(context.peer()))
        scope = SCOPE_OF.get(method)
        if not allows(method, token.scopes):
            raise _scope_missing(method, scope, token)
        if self._open_calls is not None and self._open[token.tenant] >= self._open_calls:
            raise over_quota(
                "open_calls",
                f"{self._open_calls} calls of this tenant are open at once; that is the limit.",
                "End some of what watches jobs, or ask the operator to raise the limit.",
                limit=self._open_calls,
                retry_seconds=OPEN_CALLS_RETRY_SECONDS,
            )
        (self._transfers if method in TRANSFERS else self._calls).take(token.tenant)
        self._open[token.tenant] += 1
        return Caller(tenant=token.tenant, token_id=token.id)

    def leave(self, caller: Caller) -> None:
        """The call of an admitted caller has ended."""
        if caller.token_id:
            self._open[caller.tenant] -= 1

    def check(self, caller: Caller) -> None:
        """Whether a call that goes on may go on; raises PunnetError TOKEN_INVALID where its token ended meanwhile."""
        if self._accounts is not None and caller.token_id and not self._accounts.live(caller.token_id):
            raise _token_invalid()

    def _certified(self, token: Token, authentication: Mapping[str, Iterable[bytes]]) -> bool:
        names = authentication.get("x509_common_name", ())
        return not self._certificates or token.tenant.encode() in names


class Failures:
    """Counts what each peer shows in vain.

    A peer with many failures is told so, and no line of the audit log is spent on it. Its good tokens stay good: many
    clients share an address, a secret of 256 bits is not found by trying, and one bad script must not lock others out.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._peers: dict[str, tuple[float, int]] = {}  # the minute's start, failures in it

    def note(self, peer: str) -> PunnetError:
        """Count a failure; the error to answer with."""
        now = self._clock()
        start, count = self._peers.pop(peer, (now, 0))
        if now - start >= MINUTE_SECONDS:
            start, count = now, 0
        self._peers[peer] = (start, count + 1)  # at the end: the first is the one that failed longest ago
        if len(self._peers) > PEERS:
            del self._peers[next(iter(self._peers))]
        if count < self._limit:
            return _token_invalid()
        return over_quota(
            "failures_a_minute",
            f"{self._limit} calls of this peer without a valid token came within a minute; that is the limit.",
            "Stop what calls, and give it a valid token.",
            limit=self._limit,
            retry_seconds=MINUTE_SECONDS - (now - start),
        )


def _bearer(metadata: Sequence[tuple[str, str | bytes]]) -> str:
    found = [value for name, value in metadata if name == "authorization"]
    text = found[0] if len(found) == 1 and isinstance(found[0], str) else ""
    return text.removeprefix(BEARER) if text.startswith(BEARER) else ""


def _peer_address(peer: str) -> str:
    """`ipv4:10.0.0.7:51234` without the port: each connection has another."""
    return peer.rpartition(":")[0] or peer


def _token_invalid() -> PunnetError:
    """One text for no token, an unknown one, an expired one, a revoked one, and one without its certificate."""
    return make_error(
        "TOKEN_INVALID",
        "The call carries no token that is valid here.",
        "Give one with --token-file or PUNNET_TOKEN; if it has expired or was revoked, ask the operator for a new one.",
    )


def _scope_missing(method: str, scope: str | None, token: Token) -> PunnetError:
    name = method.rpartition("/")[2]
    if scope is None:
        return make_error("SCOPE_MISSING", f"No token allows {name}.", "It is not offered on a server with accounts.")
    text = f"{name} needs a token with scope {scope}; this one has {', '.join(token.scopes)}."
    return make_error("SCOPE_MISSING", text, "Ask the operator for another token.", {"scope": scope})
