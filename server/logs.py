"""The log: one JSON object a line."""

from __future__ import annotations

import json
import logging
import logging.handlers
from pathlib import Path

LOG_BYTES = 16 << 20
LOG_FILES = 2
OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Time, level, logger, message, what was passed as `extra`, and the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
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
    logging.captureWarnings(True)
