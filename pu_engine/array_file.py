"""`.npy` files written row by row, seen only when whole."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


class ArrayWriter:
    """Writes one C-ordered array in pieces; leaving the `with` block gives the file its name.

    Args:
        path: the finished file; until then a hidden name beside it is used.
        shape: of the whole array; the first axis is appended to.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._shape = shape
        self._dtype = np.dtype(dtype)
        self._rows = 0

    def __enter__(self) -> ArrayWriter:
        self._file: BinaryIO = self._partial.open("wb")
        descr = np.lib.format.dtype_to_descr(self._dtype)
        np.lib.format.write_array_header_1_0(self._file, {"descr": descr, "fortran_order": False, "shape": self._shape})
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if kind is None:
            if self._rows != self._shape[0]:
                raise ValueError(f"{self._path.name} has {self._rows} rows, not {self._shape[0]}")
            self._partial.rename(self._path)

    def append(self, rows: NDArray[Any]) -> None:
        """Write the next rows: [n, *shape[1:]] of the file's type."""
        if rows.shape[1:] != self._shape[1:] or rows.dtype != self._dtype:
            raise ValueError(
                f"{self._path.name} takes {self._dtype}{self._shape[1:]}, got {rows.dtype}{rows.shape[1:]}"
            )
        self._file.write(np.ascontiguousarray(rows).data)
        self._rows += len(rows)


def is_whole(path: Path, shape: tuple[int, ...], dtype: type[np.generic]) -> bool:
    """Whether a file is there with this shape and type and all its bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            if np.lib.format.read_magic(file) != (1, 0):
                return False
            found_shape, fortran, found_dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError:
            return False
        size = file.tell() + math.prod(shape) * np.dtype(dtype).itemsize
    return (found_shape, fortran, found_dtype) == (shape, False, np.dtype(dtype)) and path.stat().st_size == size
