"""An error of the table as google.rpc.Status with ErrorInfo: what a failed call carries."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from punnet.errors import DOMAIN, TABLE, PunnetError

# Trailing metadata is limited to 8 KiB by default, on either side.
MESSAGE_CHARACTERS = 1000
DETAIL_CHARACTERS = 200
RETRY_SECONDS = {"QUOTA": 1.0}  # what frees itself; the client waits so long and tries again
RETRY_DETAIL = "retry_seconds"  # of an error that knows better


def status_of(error: PunnetError) -> status_pb2.Status:
    """Code, message, ErrorInfo with the code of the table, remedy and details; RetryInfo where waiting helps."""
    row = TABLE[error.code]
    info = error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN, metadata={"remedy": error.remedy})
    for name, value in error.details.items():
        info.metadata[name] = value[:DETAIL_CHARACTERS]
    status = status_pb2.Status(code=int(row.status.value[0]), message=error.message[:MESSAGE_CHARACTERS])
    status.details.add().Pack(info)
    if error.code in RETRY_SECONDS:
        retry = error_details_pb2.RetryInfo()
        seconds = float(error.details.get(RETRY_DETAIL, RETRY_SECONDS[error.code]))
        retry.retry_delay.FromMicroseconds(round(seconds * 1e6))
        status.details.add().Pack(retry)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: PunnetError) -> NoReturn:
    """End the call with the error."""
    status = rpc_status.to_status(status_of(error))
    context.set_trailing_metadata(status.trailing_metadata)
    await context.abort(status.code, status.details)


def internal(error_id: str) -> PunnetError:
    """What a caller learns of a defect: where the log has it."""
    return PunnetError(
        "The server failed unexpectedly.",
        code="INTERNAL",
        remedy=f"Report it with the server's log; the error id is {error_id}.",
        details={"error_id": error_id},
    )
