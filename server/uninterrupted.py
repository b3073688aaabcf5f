"""Changes of several steps that a caller's end must not cut in two."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_running: set[asyncio.Task[Any]] = set()  # the event loop itself holds tasks weakly


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which runs to its end also where the caller is cancelled: a client went away."""
    task = asyncio.create_task(work)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return await asyncio.shield(task)


async def all_ended() -> None:
    """Wait for what callers left behind."""
    while _running:
        await asyncio.wait(set(_running))
