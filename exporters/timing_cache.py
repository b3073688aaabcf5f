"""TensorRT's timing cache between builds: one file for each builder version and device, under a lock.

A file holds the sha256 of the rest and the rest: a damaged one is ignored and written anew. TensorRT-RTX keeps no
timings. Standard library only: bundles carry this module.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.file_lock import file_lock

DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingCache:
    """A folder of timing caches, and which of them a build uses."""

    folder: Path
    version: str  # of TensorRT
    device: str  # the card's name: timings of another card mislead

    @property
    def path(self) -> Path:
        """The cache's file."""
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.version}-{self.device}").strip("-").lower()
        return self.folder / f"{name}.timing"

    def read(self) -> bytes:
        """The cache's content; empty where there is none or it is damaged."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.path.with_suffix(".lock")):
            return self._read()

    def merge(self, content: Callable[[bytes], bytes]) -> None:
        """Write what `content` makes of what other builds wrote meanwhile."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with file_lock(self.path.with_suffix(".lock")):
            data = content(self._read())
            partial = self.path.with_suffix(".partial")
            partial.write_bytes(hashlib.sha256(data).digest() + data)
            os.replace(partial, self.path)

    def _read(self) -> bytes:
        data = self.path.read_bytes() if self.path.exists() else b""
        digest, content = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
        return content if hashlib.sha256(content).digest() == digest else b""


def use_timings(config: Any, cache: TimingCache) -> Callable[[], None]:
    """Give a builder's configuration the cached timings; returns what is to be called after the build."""
    timings = config.create_timing_cache(cache.read())
    config.set_timing_cache(timings, ignore_mismatch=False)

    def keep() -> None:
        def combined(others: bytes) -> bytes:
            if others:
                timings.combine(config.create_timing_cache(others), ignore_mismatch=False)
            return bytes(timings.serialize())

        cache.merge(combined)

    return keep
