"""Failed calls and failed jobs become the exceptions of the error table."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import AioRpcError, Metadata

from punnet import errors
from punnet.errors_from_rpc import STATUS_DETAILS_KEY, error_from_job, error_from_rpc, reason, retry_seconds
from punnet.v1 import job_pb2


def rpc_error(code: grpc.StatusCode, text: str, *details: Message) -> AioRpcError:
    status = status_pb2.Status(code=code.value[0], message=text)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    trailing = Metadata((STATUS_DETAILS_KEY, status.SerializeToString())) if details else Metadata()
    return AioRpcError(code, Metadata(), trailing, text)


def info(code: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=code, domain=errors.DOMAIN, metadata=metadata)


@pytest.mark.parametrize("code", sorted(errors.TABLE))
def test_every_code_of_the_table_arrives_as_its_exception(code: str) -> None:
    row = errors.TABLE[code]
    error = error_from_rpc(rpc_error(row.status, "what", info(code, remedy="do", limit="3")), "here")
    assert type(error) is row.exception
    assert (error.message, error.code, error.remedy, error.details) == ("what", code, "do", {"limit": "3"})


def test_unreachable_server_is_named_with_its_address() -> None:
    error = error_from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, "connection refused"), "host:1")
    assert isinstance(error, errors.ServerUnavailable)
    assert "host:1" in error.message
    assert errors.exit_status(error) == 13


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
    ],
)
def test_something_else_that_answers_is_no_punnet_server(code: grpc.StatusCode) -> None:
    error = error_from_rpc(rpc_error(code, "Received http2 header with status: 404"), "host:1")
    assert isinstance(error, errors.ServerUnavailable)
    assert errors.exit_status(error) == 13
    assert "What answers at host:1 is no Punnet server" in error.message
    assert code.name in error.message


def test_other_answer_without_a_code_is_internal() -> None:
    error = error_from_rpc(rpc_error(grpc.StatusCode.DATA_LOSS, "odd"), "host:1")
    assert isinstance(error, errors.InternalError)
    assert "DATA_LOSS" in error.message


def test_error_info_of_another_domain_is_not_ours() -> None:
    foreign = error_details_pb2.ErrorInfo(reason="QUOTA", domain="example.org")
    failed = rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", foreign)
    assert reason(failed) == ""
    assert isinstance(error_from_rpc(failed, "host:1"), errors.InternalError)


def test_garbage_in_the_details_is_not_ours() -> None:
    failed = AioRpcError(grpc.StatusCode.INTERNAL, Metadata(), Metadata((STATUS_DETAILS_KEY, b"\xff\xff")), "odd")
    assert isinstance(error_from_rpc(failed, "host:1"), errors.InternalError)


def test_retry_delay_is_found_beside_the_code() -> None:
    delay = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    failed = rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", info("QUOTA"), delay)
    assert retry_seconds(failed) == 1.5
    assert reason(failed) == "QUOTA"
    assert retry_seconds(rpc_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", info("QUOTA"))) is None


def test_failed_job_raises_its_code_with_the_stage() -> None:
    failure = job_pb2.JobError(reason="TRAINING_DIVERGED", message="m", remedy="r", stage="distillation")
    job = job_pb2.Job(id="j", state=job_pb2.JOB_STATE_FAILED, error=failure)
    error = error_from_job(job)
    assert isinstance(error, errors.TrainingFailed)
    assert error.details == {"job": "j", "stage": "distillation"}
    assert str(error) == "m r"


def test_cancelled_job_raises_job_cancelled() -> None:
    error = error_from_job(job_pb2.Job(id="j", state=job_pb2.JOB_STATE_CANCELLED))
    assert isinstance(error, errors.JobCancelled)
    assert errors.exit_status(error) == 12


def test_code_that_the_table_lacks_is_internal() -> None:
    job = job_pb2.Job(id="j", state=job_pb2.JOB_STATE_FAILED, error=job_pb2.JobError(reason="NEW", message="m"))
    error = error_from_job(job)
    assert isinstance(error, errors.InternalError)
    assert error.code == "NEW"
    assert errors.exit_status(error) == errors.EXIT_UNKNOWN
