"""The one table of errors: code -> gRPC status -> exception -> exit status of the CLI.

PunnetError
├── InvalidRequest        the request itself is wrong
├── InvalidTeacher        not loadable, too big, hostile
├── UnsupportedTeacher    valid, but not an image classifier that Punnet can read
├── InvalidImages         undecodable, a class missing, too few
├── InvalidPool           the pool can't be made or used
├── InvalidStudent        no such network, or it does not fit
├── NotFound              unknown job, pool or blob
├── CapacityExhausted     queue, disk, memory or quota; worth another try later
├── TrainingFailed        diverged or collapsed
├── VerificationFailed    a hop missed its gate
├── StageCrashed          a process died; not the user's fault
├── IntegrityError        bytes differ from their digest
├── AccessDenied          no valid token, or one that does not allow this
├── JobCancelled          the job was stopped on request
├── ServerUnavailable     not reachable, or going down
└── InternalError         a defect; the server's log has the error id
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import grpc

DOMAIN = "punnet"


class PunnetError(Exception):
    """Base of every error of the client.

    Args:
        message: what was wrong with which thing.
        code: stable code of the table.
        remedy: what to do about it.
        details: names, limits and values, for programs.
    """

    def __init__(
        self, message: str, *, code: str = "INTERNAL", remedy: str = "", details: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.remedy = remedy
        self.details = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class InvalidRequest(PunnetError):
    """The request itself is wrong."""


class InvalidTeacher(PunnetError):
    """The teacher can't be loaded, is too big, or is hostile."""


class UnsupportedTeacher(PunnetError):
    """The teacher is valid, but not an image classifier that Punnet can read."""


class InvalidImages(PunnetError):
    """Labelled images are undecodable, too few, or of one class only."""


class InvalidPool(PunnetError):
    """The pool can't be made or used."""


class InvalidStudent(PunnetError):
    """No such network, or it does not fit the images."""


class NotFound(PunnetError):
    """Unknown job, pool or blob."""


class CapacityExhausted(PunnetError):
    """Queue, disk, memory or quota; worth another try later."""


class TrainingFailed(PunnetError):
    """Training diverged or collapsed."""


class VerificationFailed(PunnetError):
    """A hop of the chain missed its gate."""


class StageCrashed(PunnetError):
    """A process died; not the user's fault."""


class IntegrityError(PunnetError):
    """Bytes differ from their digest."""


class AccessDenied(PunnetError):
    """No valid token, or one that does not allow this."""


class JobCancelled(PunnetError):
    """The job was stopped on request."""


class ServerUnavailable(PunnetError):
    """The server is not reachable, or going down."""


class InternalError(PunnetError):
    """A defect; the server's log has the error id."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one code means on each side."""

    status: grpc.StatusCode
    exception: type[PunnetError]
    exit_status: int


_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
_NOT_FOUND = grpc.StatusCode.NOT_FOUND
_EXISTS = grpc.StatusCode.ALREADY_EXISTS
_INTERNAL = grpc.StatusCode.INTERNAL

EXIT_UNKNOWN = 70
TABLE: Mapping[str, Row] = {
    "REQUEST_INVALID": Row(_ARGUMENT, InvalidRequest, 2),
    "REQUEST_ID_REUSED": Row(_EXISTS, InvalidRequest, 2),
    "JOB_NOT_FINISHED": Row(_PRECONDITION, InvalidRequest, 2),
    "MODEL_MALFORMED": Row(_ARGUMENT, InvalidTeacher, 3),
    "MODEL_EXTERNAL_DATA": Row(_ARGUMENT, InvalidTeacher, 3),
    "MODEL_TOO_LARGE": Row(_EXHAUSTED, InvalidTeacher, 3),
    "MODEL_TOO_COMPLEX": Row(_ARGUMENT, InvalidTeacher, 3),
    "MODEL_UNSUPPORTED_OP": Row(_ARGUMENT, UnsupportedTeacher, 3),
    "MODEL_OPSET": Row(_ARGUMENT, InvalidTeacher, 3),
    "MODEL_BAD_TENSOR": Row(_ARGUMENT, InvalidTeacher, 3),
    "MODEL_BAD_GRAPH": Row(_ARGUMENT, InvalidTeacher, 3),
    "MODEL_BAD_NAME": Row(_ARGUMENT, InvalidTeacher, 3),
    "MODEL_MEMORY": Row(_EXHAUSTED, InvalidTeacher, 3),
    "MODEL_TIMEOUT": Row(_PRECONDITION, InvalidTeacher, 3),
    "MODEL_CRASHED": Row(_PRECONDITION, InvalidTeacher, 3),
    "MODEL_NONFINITE": Row(_PRECONDITION, InvalidTeacher, 3),
    "UNSUPPORTED_FORMAT": Row(_ARGUMENT, InvalidTeacher, 3),
    "TEACHER_NOT_A_CLASSIFIER": Row(_ARGUMENT, UnsupportedTeacher, 3),
    "TEACHER_CONVENTION_UNKNOWN": Row(_ARGUMENT, UnsupportedTeacher, 3),
    "TAP_INVALID": Row(_ARGUMENT, InvalidRequest, 2),
    "TEACHER_IGNORES_IMAGE": Row(_ARGUMENT, UnsupportedTeacher, 3),
    "LABELS_UNMAPPABLE": Row(_ARGUMENT, InvalidImages, 4),
    "IMAGES_MISSING": Row(_ARGUMENT, InvalidImages, 4),
    "IMAGES_ONE_CLASS": Row(_ARGUMENT, InvalidImages, 4),
    "IMAGE_REJECTED": Row(_ARGUMENT, InvalidImages, 4),
    "ARCHIVE_REJECTED": Row(_ARGUMENT, InvalidImages, 4),
    "POOL_NOT_FOUND": Row(_NOT_FOUND, NotFound, 5),
    "POOL_EXISTS": Row(_EXISTS, InvalidPool, 5),
    "POOL_INVALID": Row(_ARGUMENT, InvalidPool, 5),
    "POOL_IN_USE": Row(_PRECONDITION, InvalidPool, 5),
    "POOL_DAMAGED": Row(grpc.StatusCode.DATA_LOSS, IntegrityError, 10),
    "POOL_TOO_POOR": Row(_PRECONDITION, InvalidPool, 5),
    "STUDENT_UNKNOWN": Row(_ARGUMENT, InvalidStudent, 6),
    "STUDENT_UNSUPPORTED": Row(_ARGUMENT, InvalidStudent, 6),
    "TRAINING_DIVERGED": Row(_PRECONDITION, TrainingFailed, 7),
    "PARITY_FAILED": Row(_PRECONDITION, VerificationFailed, 8),
    "EXPORT_FAILED": Row(_PRECONDITION, VerificationFailed, 8),
    "STAGE_CRASHED": Row(_INTERNAL, StageCrashed, 9),
    "STAGE_MEMORY": Row(_EXHAUSTED, StageCrashed, 9),
    "STAGE_TIMEOUT": Row(_PRECONDITION, StageCrashed, 9),
    "STAGE_LOST": Row(grpc.StatusCode.UNAVAILABLE, StageCrashed, 9),
    "STAGE_PROTOCOL": Row(_INTERNAL, StageCrashed, 9),
    "BLOB_MISSING": Row(_NOT_FOUND, NotFound, 5),
    "BUNDLE_MISSING": Row(_NOT_FOUND, NotFound, 5),
    "BUILD_LEASE_LOST": Row(_PRECONDITION, InvalidRequest, 2),
    "JOB_NOT_FOUND": Row(_NOT_FOUND, NotFound, 5),
    "DIGEST_MISMATCH": Row(_ARGUMENT, IntegrityError, 10),
    "CHUNK_CORRUPT": Row(grpc.StatusCode.DATA_LOSS, IntegrityError, 10),
    "UPLOAD_OFFSET": Row(_PRECONDITION, IntegrityError, 10),
    "ARTIFACT_CORRUPT": Row(grpc.StatusCode.DATA_LOSS, IntegrityError, 10),
    "QUOTA": Row(_EXHAUSTED, CapacityExhausted, 11),
    "DISK_FULL": Row(_EXHAUSTED, CapacityExhausted, 11),
    "DISK_FAILED": Row(grpc.StatusCode.UNAVAILABLE, CapacityExhausted, 11),
    "TOKEN_INVALID": Row(grpc.StatusCode.UNAUTHENTICATED, AccessDenied, 14),
    "SCOPE_MISSING": Row(grpc.StatusCode.PERMISSION_DENIED, AccessDenied, 14),
    "TOKEN_IN_PLAINTEXT": Row(_PRECONDITION, AccessDenied, 14),
    "UNSAFE_BIND": Row(_PRECONDITION, ServerUnavailable, 2),
    "JOB_CANCELLED": Row(grpc.StatusCode.CANCELLED, JobCancelled, 12),
    "UNAVAILABLE": Row(grpc.StatusCode.UNAVAILABLE, ServerUnavailable, 13),
    "SERVER_START_FAILED": Row(grpc.StatusCode.UNAVAILABLE, ServerUnavailable, 13),
    "INTERNAL": Row(_INTERNAL, InternalError, EXIT_UNKNOWN),
}


def make_error(code: str, message: str, remedy: str = "", details: Mapping[str, str] | None = None) -> PunnetError:
    """The exception that the table gives for a code; InternalError for one that it lacks."""
    row = TABLE.get(code)
    kind = row.exception if row else InternalError
    return kind(message, code=code, remedy=remedy, details=details)


def exit_status(error: PunnetError) -> int:
    """The CLI's exit status for an error."""
    row = TABLE.get(error.code)
    return row.exit_status if row else EXIT_UNKNOWN
