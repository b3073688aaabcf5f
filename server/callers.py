"""Who a call is from. Every call sets it once; whatever serves the call asks for it, and it never is an argument."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A tenant, and the token that it showed; a server without accounts asks for none."""

    tenant: str
    token_id: str = ""


_CALLER: ContextVar[Caller] = ContextVar("caller")


def enter(caller: Caller) -> None:
    """Make this the caller of the running call. gRPC runs each call in a task, and so in a context, of its own."""
    _CALLER.set(caller)


def tenant() -> str:
    """The tenant whose call this is; raises LookupError outside of one, so that nothing is ever nobody's."""
    return _CALLER.get().tenant
