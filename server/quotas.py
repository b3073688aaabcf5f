"""How much one tenant may use. The defaults are those of a shared server; a private one has no other tenants."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from punnet.errors import PunnetError, make_error

SECONDS_A_MINUTE = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Quotas:
    """Of each tenant; None sets no limit."""

    storage_bytes: int | None = 50 << 30
    running_jobs: int | None = 1  # compressions, and as many short jobs
    queued_jobs: int = 8
    calls_a_minute: int | None = 60
    transfers_a_minute: int | None = 6000
    open_calls: int | None = 128  # watches, above all; the server has room for 512
    failures_a_minute: int = 10  # of a peer without a valid token, before it is only told to stop


DEFAULTS = Quotas()
WHOLE_OPTIONS = (
    "tenant_running_jobs",
    "queued_jobs",
    "calls_a_minute",
    "transfers_a_minute",
    "open_calls",
    "failures_a_minute",
)


def add_quotas(parser: argparse.ArgumentParser) -> None:
    """The options of the quotas, with their defaults."""
    storage = (DEFAULTS.storage_bytes or 0) >> 30
    parser.add_argument("--tenant-storage-gib", type=float, default=storage, help="of all that a tenant has stored")
    parser.add_argument(
        "--tenant-running-jobs", type=int, default=DEFAULTS.running_jobs, help="compressions, and as many short jobs"
    )
    parser.add_argument(
        "--queued-jobs", type=int, default=DEFAULTS.queued_jobs, help="jobs of one tenant that may wait"
    )
    parser.add_argument("--calls-a-minute", type=int, default=DEFAULTS.calls_a_minute, help="of one tenant")
    parser.add_argument(
        "--transfers-a-minute",
        type=int,
        default=DEFAULTS.transfers_a_minute,
        help="uploads and downloads of one tenant",
    )
    parser.add_argument("--open-calls", type=int, default=DEFAULTS.open_calls, help="of one tenant at once")
    parser.add_argument(
        "--failures-a-minute", type=int, default=DEFAULTS.failures_a_minute, help="of a peer without a valid token"
    )


def quotas_of(options: argparse.Namespace) -> Quotas:
    """What the command line says."""
    return Quotas(
        storage_bytes=int(options.tenant_storage_gib * 2**30),
        running_jobs=options.tenant_running_jobs,
        queued_jobs=options.queued_jobs,
        calls_a_minute=options.calls_a_minute,
        transfers_a_minute=options.transfers_a_minute,
        open_calls=options.open_calls,
        failures_a_minute=options.failures_a_minute,
    )


def unlimited(quotas: Quotas) -> Quotas:
    """Those of a server without accounts: nothing is kept from its one user but a queue without end."""
    return Quotas(
        storage_bytes=None,
        running_jobs=None,
        queued_jobs=quotas.queued_jobs,
        calls_a_minute=None,
        transfers_a_minute=None,
        open_calls=None,
        failures_a_minute=quotas.failures_a_minute,
    )


class Rate:
    """Calls of each key: as many as the limit at once, then evenly over each minute.

    Args:
        what: names the limit in the refusal.
        limit: calls a minute; None admits all.
        clock: seconds that only grow.
    """

    def __init__(self, what: str, limit: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._limit = limit
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # calls that are left, as of then

    def take(self, key: str) -> None:
        """Count a call.

        Raises:
            PunnetError: QUOTA with the seconds until the next call is admitted.
        """
        if self._limit is None:
            return
        now = self._clock()
        a_second = self._limit / SECONDS_A_MINUTE
        left, then = self._buckets.get(key, (float(self._limit), now))
        left = min(float(self._limit), left + (now - then) * a_second)
        admitted = left >= 1
        self._buckets[key] = (left - 1 if admitted else left, now)
        if not admitted:
            raise over_quota(
                self._what,
                f"{self._limit} {self._what.replace('_', ' ')} are admitted; they are used up.",
                "Wait as long as the answer says, or ask the operator to raise the limit.",
                limit=self._limit,
                retry_seconds=(1 - left) / a_second,
            )


def over_quota(quota: str, message: str, remedy: str, *, limit: int, retry_seconds: float) -> PunnetError:
    """QUOTA: which limit, how high it is, when another try may succeed."""
    wait = math.ceil(retry_seconds * 1000) / 1000
    details = {"quota": quota, "limit": str(limit), "retry_seconds": f"{wait:g}"}
    return make_error("QUOTA", message, remedy, details)
