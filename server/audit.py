"""Who did what: one JSON object a line for each call, in files that are rotated by size.

Never in it: tokens, bytes of users, names that users chose freely. A resource is an id, a digest or a pool's name.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

log = logging.getLogger(__name__)

AUDIT_BYTES = 16 << 20
AUDIT_FILES = 8  # beside the one that is written
PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")
NAMING_FIELDS = ("id", "job_id", "name", "sha256")
NAMING_MESSAGES = ("digest", "job")


@dataclass(slots=True)
class Record:
    """One call, as far as it is known."""

    method: str
    peer: str
    tenant: str = ""
    token_id: str = ""
    resource: str = ""
    outcome: str = "CANCELLED"  # unless it ends otherwise

    def note(self, message: Any) -> None:
        """Take the resource from a request, or from the answer that names what was made."""
        if isinstance(message, Message) and not self.resource:
            self.resource = resource_of(message)


def resource_of(message: Message) -> str:
    """What a message is about; empty where it names nothing, or names it freely."""
    fields = message.DESCRIPTOR.fields_by_name
    for name in NAMING_FIELDS:
        if name in fields and isinstance(value := getattr(message, name), str) and PLAIN.fullmatch(value):
            return value
    for name in NAMING_MESSAGES:
        if name in fields and message.HasField(name):
            return resource_of(getattr(message, name))
    return ""


class AuditLog:
    """Appends to `path`; full files become `path.1`, the newest, up to `path.8`."""

    def __init__(self, path: Path, *, limit: int = AUDIT_BYTES, kept: int = AUDIT_FILES) -> None:
        self._path = path
        self._limit = limit
        self._kept = kept
        self._file = self._opened()
        self._size = os.fstat(self._file).st_size

    def write(self, record: Record) -> None:
        """Add a line. A full disk costs the line and is logged; it does not stop the service."""
        now = time.time_ns()
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1_000_000_000))
        line = {
            "time": f"{seconds}.{now // 1_000_000 % 1000:03d}Z",
            "tenant": record.tenant,
            "token": record.token_id,
            "peer": record.peer,
            "method": record.method,
            "resource": record.resource,
            "outcome": record.outcome,
        }
        data = json.dumps(line).encode() + b"\n"
        try:
            if self._size + len(data) > self._limit:
                self._rotate()
            self._size += os.write(self._file, data)
        except OSError:
            log.exception("a call can't be written to the audit log", extra={"method": record.method})

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _opened(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)

    def _rotate(self) -> None:
        names = [self._path, *(self._path.with_name(f"{self._path.name}.{n}") for n in range(1, self._kept + 1))]
        for older, newer in zip(reversed(names[1:]), reversed(names[:-1]), strict=True):
            if newer.exists():
                os.replace(newer, older)
        full, self._file = self._file, self._opened()  # where it can't be opened, the old one is written on
        self._size = 0
        os.close(full)
