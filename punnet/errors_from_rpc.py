"""What went wrong on the wire or in a job, as the typed exception of the error table."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError

from punnet.errors import DOMAIN, PunnetError, make_error
from punnet.v1 import job_pb2

# Where a server puts a google.rpc.Status that says more than code and text.
STATUS_DETAILS_KEY = "grpc-status-details-bin"
# What gRPC makes of a status that a Punnet server never sends without its code: 404 of another HTTP server, a proxy's
# 401 or 403, any other HTTP status, a method that is not there.
FOREIGN = frozenset(
    {StatusCode.UNIMPLEMENTED, StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED, StatusCode.UNKNOWN}
)
_Detail = TypeVar("_Detail", bound=Message)


def error_from_rpc(error: AioRpcError, address: str) -> PunnetError:
    """The typed exception for a failed call.

    The code is ErrorInfo's reason where the domain is Punnet's; its metadata becomes the details, of which `remedy` is
    taken out. An answer without it comes from gRPC itself or from something else that listens there.
    """
    text = error.details() or "no reason given"
    info = _detail(error, error_details_pb2.ErrorInfo())
    if info is not None and info.domain == DOMAIN:
        details = dict(info.metadata)
        return make_error(info.reason, text, details.pop("remedy", ""), details)
    if error.code() == StatusCode.UNAVAILABLE:
        return unreachable(address, text)
    if error.code() == StatusCode.DEADLINE_EXCEEDED:
        return make_error(
            "UNAVAILABLE",
            f"The server at {address} did not answer in time.",
            "It may be busy: try again in a moment.",
            {"address": address},
        )
    if error.code() in FOREIGN:
        return make_error(
            "UNAVAILABLE",
            f"What answers at {address} is no Punnet server of this version: {error.code().name}: {text}.",
            "Check the address (--server or PUNNET_SERVER) and the versions on both sides; `punnet doctor` says them.",
            {"address": address, "status": error.code().name},
        )
    return make_error(
        "INTERNAL",
        f"The server at {address} answered {error.code().name}: {text}.",
        "Is that a Punnet server, and of this version? `punnet doctor` says.",
        {"address": address, "status": error.code().name},
    )


def unreachable(address: str, why: str) -> PunnetError:
    """ServerUnavailable for an address that does not answer."""
    return make_error(
        "UNAVAILABLE",
        f"No Punnet server answers at {address}: {why}.",
        "Check the address (--server or PUNNET_SERVER; https://host:port where it has TLS, with --ca for an authority "
        "of your own), or leave it out to use a private server on this machine.",
        {"address": address},
    )


def retry_seconds(error: AioRpcError) -> float | None:
    """The delay that the server asks for before another try; None where it names none."""
    info = _detail(error, error_details_pb2.RetryInfo())
    return None if info is None else info.retry_delay.seconds + info.retry_delay.nanos * 1e-9


def reason(error: AioRpcError) -> str:
    """The code of the error table that a failed call carries; empty where it carries none."""
    info = _detail(error, error_details_pb2.ErrorInfo())
    return info.reason if info is not None and info.domain == DOMAIN else ""


def error_from_job(job: job_pb2.Job) -> PunnetError:
    """The typed exception for a job that FAILED or was CANCELLED; `job` and `stage` are among its details."""
    details = {**job.error.details, "job": job.id}
    if job.error.stage:
        details["stage"] = job.error.stage
    if job.state == job_pb2.JOB_STATE_CANCELLED:
        return make_error("JOB_CANCELLED", f"The job {job.id} was cancelled.", "", details)
    return make_error(job.error.reason, job.error.message, job.error.remedy, details)


def _detail(error: AioRpcError, detail: _Detail) -> _Detail | None:
    """The first detail of this type that came with the status; None where there is none."""
    for key, value in error.trailing_metadata() or ():
        if key != STATUS_DETAILS_KEY or not isinstance(value, bytes):
            continue
        status = status_pb2.Status()
        try:
            status.ParseFromString(value)
        except DecodeError:
            return None  # not a google.rpc.Status: something else than Punnet wrote it
        for packed in status.details:
            if packed.Unpack(detail):
                return detail
    return None
