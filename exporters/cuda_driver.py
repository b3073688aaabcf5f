"""The CUDA driver through ctypes: memory, streams and events, without a toolkit or another package.

The driver (`libcuda`) is on every machine with an NVIDIA device; the CUDA runtime library is not, and TensorRT-RTX
brings none. Both share one context a device. Not run on hardware yet. Bundles carry this module.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import Any

from exporters.errors import ExportError

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
NAME_BYTES = 256
SUCCESS = 0
REMEDY = "Run this on the target device, with NVIDIA's driver installed."


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One NVIDIA device."""

    index: int
    name: str
    capability: str  # for instance "SM87"
    driver: str  # newest CUDA version that the driver knows, for instance "13.0"
    memory_bytes: int


def find_device(index: int = 0) -> Device | None:
    """A device by number; None where this machine has no driver or no such device."""
    library = _library()
    count = ctypes.c_int()
    if library is None or library.cuInit(0) != SUCCESS or library.cuDeviceGetCount(ctypes.byref(count)) != SUCCESS:
        return None
    if index >= count.value:
        return None
    handle, version, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(NAME_BYTES)
    _check(library.cuDeviceGet(ctypes.byref(handle), index))
    _check(library.cuDeviceGetName(name, NAME_BYTES, handle))
    _check(library.cuDriverGetVersion(ctypes.byref(version)))
    _check(library.cuDeviceTotalMem_v2(ctypes.byref(memory), handle))
    digits = "".join(str(_attribute(library, number, handle)) for number in (MAJOR, MINOR))
    return Device(
        index=index,
        name=name.value.decode(errors="replace"),
        capability=f"SM{digits}",
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
        memory_bytes=memory.value,
    )


class Stream:
    """A stream in the device's shared context; frees what it allocated when it closes."""

    def __init__(self, device: Device) -> None:
        library = _library()
        if library is None:
            raise ExportError("There is no CUDA driver on this machine.", REMEDY)
        self._cuda = library
        handle, context = ctypes.c_int(), ctypes.c_void_p()
        _check(library.cuDeviceGet(ctypes.byref(handle), device.index))
        _check(library.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
        _check(library.cuCtxSetCurrent(context))
        self._device = handle
        self._memory: list[ctypes.c_uint64] = []
        self._events: list[ctypes.c_void_p] = []
        self._stream = ctypes.c_void_p()
        _check(library.cuStreamCreate(ctypes.byref(self._stream), 0))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        for memory in self._memory:
            self._cuda.cuMemFree_v2(memory)
        for event in self._events:
            self._cuda.cuEventDestroy_v2(event)
        self._cuda.cuStreamDestroy_v2(self._stream)
        self._cuda.cuDevicePrimaryCtxRelease_v2(self._device)

    @property
    def handle(self) -> int:
        """What TensorRT takes as a stream."""
        return self._stream.value or 0

    def allocate(self, size: int) -> int:
        """Device memory of so many bytes; its address."""
        pointer = ctypes.c_uint64()
        _check(self._cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(max(1, size))))
        self._memory.append(pointer)
        return pointer.value

    def upload(self, target: int, source: int, size: int) -> None:
        """Copy from the host address `source`, in the order of the stream."""
        _check(
            self._cuda.cuMemcpyHtoDAsync_v2(
                ctypes.c_uint64(target), ctypes.c_void_p(source), ctypes.c_size_t(size), self._stream
            )
        )

    def download(self, target: int, source: int, size: int) -> None:
        """Copy to the host address `target`, in the order of the stream."""
        _check(
            self._cuda.cuMemcpyDtoHAsync_v2(
                ctypes.c_void_p(target), ctypes.c_uint64(source), ctypes.c_size_t(size), self._stream
            )
        )

    def wait(self) -> None:
        """Return once everything in the stream is done."""
        _check(self._cuda.cuStreamSynchronize(self._stream))

    def event(self) -> ctypes.c_void_p:
        """An event that keeps time."""
        event = ctypes.c_void_p()
        _check(self._cuda.cuEventCreate(ctypes.byref(event), 0))
        self._events.append(event)
        return event

    def record(self, event: ctypes.c_void_p) -> None:
        """Note the time when the stream gets here."""
        _check(self._cuda.cuEventRecord(event, self._stream))

    def milliseconds(self, start: ctypes.c_void_p, end: ctypes.c_void_p) -> float:
        """Device time between two recorded events."""
        _check(self._cuda.cuEventSynchronize(end))
        elapsed = ctypes.c_float()
        _check(self._cuda.cuEventElapsedTime(ctypes.byref(elapsed), start, end))
        return float(elapsed.value)


@functools.cache
def _library() -> Any | None:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _attribute(library: Any, number: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _check(library.cuDeviceGetAttribute(ctypes.byref(value), number, device))
    return value.value


def _check(status: int) -> None:
    if status == SUCCESS:
        return
    library, text = _library(), ctypes.c_char_p()
    if library is not None:
        library.cuGetErrorString(status, ctypes.byref(text))
    said = text.value.decode() if text.value else "no text"
    raise ExportError(f"The CUDA driver answers with error {status}: {said}.", REMEDY, status=status)
