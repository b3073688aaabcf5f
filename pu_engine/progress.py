"""How a stage says how far it is: JSON lines on a descriptor, or whatever the caller gives."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Protocol

TICK_SECONDS = 0.25
WINDOW_SECONDS = 5.0
LINE_BYTES = 16384


class Progress(Protocol):
    """What a stage gets to report with."""

    def update(self, done: int, total: int, unit: str, metrics: Mapping[str, float] | None = None) -> None:
        """How far the stage is; cheap enough for every step."""

    def warn(self, text: str) -> None:
        """Something that the user should know, though the stage goes on."""


class SilentProgress:
    """Keeps the warnings, drops the rest."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def update(self, done: int, total: int, unit: str, metrics: Mapping[str, float] | None = None) -> None:
        return None

    def warn(self, text: str) -> None:
        self.warnings.append(text)


class LineProgress:
    """JSON lines on a descriptor, at most four a second; the rate is over the last few seconds."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._last = 0.0
        self._window: list[tuple[float, int]] = []

    def update(self, done: int, total: int, unit: str, metrics: Mapping[str, float] | None = None) -> None:
        now = time.monotonic()
        if now - self._last < TICK_SECONDS and done != total:
            return
        self._last = now
        if self._window and done < self._window[-1][1]:
            self._window.clear()
        recent = [(t, d) for t, d in self._window if now - t < WINDOW_SECONDS]
        self._window = [*recent, (now, done)]
        (t0, d0), (t1, d1) = self._window[0], self._window[-1]
        rate = (d1 - d0) / (t1 - t0) if t1 > t0 else 0.0
        self._send({"done": done, "total": total, "unit": unit, "rate": rate, "metrics": dict(metrics or {})})

    def warn(self, text: str) -> None:
        self._send({"warning": text})

    def _send(self, message: dict[str, object]) -> None:
        line = (json.dumps(message) + "\n").encode()
        if len(line) > LINE_BYTES:
            raise ValueError(f"progress line of {len(line)} bytes; at most {LINE_BYTES}")
        os.write(self._descriptor, line)
