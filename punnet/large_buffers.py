"""glibc's allocator, told to keep what a transfer frees."""

from __future__ import annotations

import ctypes
import sys

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # malloc.h's names for the two
KEPT_BYTES = 32 << 20


def keep_large_buffers() -> None:
    """Has freed buffers of the size of chunks used again instead of given back; glibc only, elsewhere nothing.

    Every chunk is a few buffers of a MiB. By default glibc returns each to the kernel, which hands out and clears
    fresh pages for the next, which `benchmarks.transport` shows. At most 32 MiB a thread's arena stay.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(TRIM_THRESHOLD, KEPT_BYTES)
