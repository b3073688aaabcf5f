"""The log: one JSON object a line, with the job and the stage that it is about."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

LOG_BYTES = 16 << 20
LOG_FILES = 2
OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_about: ContextVar[Mapping[str, str]] = ContextVar("about", default={})  # noqa: B039 - never changed in place


@contextlib.contextmanager
def about(**fields: str) -> Iterator[None]:
    """Every line that is logged inside carries these, for instance `job`; also from threads that are started there."""
    token = _about.set({**_about.get(), **fields})
    try:
        yield
    finally:
        _about.reset(token)


class JsonLines(logging.Formatter):
    """Time (UTC), level, logger, message, what it is about, what was passed as `extra`, an exception's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_about.get(),
            **{name: value for name, value in vars(record).items() if name not in OWN_FIELDS},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def start_log(path: Path) -> None:
    """Write everything from INFO on to a file that is rotated by size."""
    file = logging.handlers.RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    file.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[file], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its starts and stops are ours, which are logged
    logging.captureWarnings(True)
