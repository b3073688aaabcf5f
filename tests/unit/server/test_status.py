"""What a failed call carries."""

from __future__ import annotations

from google.rpc import error_details_pb2

from punnet.errors import make_error
from server.status import status_of


def test_a_quota_tells_when_to_try_again() -> None:
    status = status_of(make_error("QUOTA", "4 uploads run; that is the limit.", "Try again in a moment."))
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, retry.retry_delay.seconds) == ("QUOTA", 1)


def test_error_that_knows_better_says_how_long_to_wait() -> None:
    details = {"quota": "calls_a_minute", "limit": "60", "retry_seconds": "0.25"}
    status = status_of(make_error("QUOTA", "60 calls a minute are admitted; they are used up.", "Wait.", details))
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 250


def test_what_waiting_does_not_mend_has_no_retry_info() -> None:
    status = status_of(make_error("REQUEST_INVALID", "Field seed: must be 0 or more; got -1.", "Correct the field."))
    assert len(status.details) == 1


def test_long_texts_stay_below_the_limit_of_trailing_metadata() -> None:
    status = status_of(make_error("MODEL_MALFORMED", "x" * 100_000, "y", {"value": "z" * 100_000}))
    assert status.ByteSize() < 8192
