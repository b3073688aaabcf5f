"""Arrays written in pieces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pu_engine.array_file import ArrayWriter, is_whole


def test_pieces_make_the_file_that_numpy_would_save(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float16).reshape(6, 2, 2)
    with ArrayWriter(tmp_path / "a.npy", (6, 2, 2), np.float16) as file:
        file.append(array[:4])
        file.append(array[4:])
    np.save(tmp_path / "b.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert is_whole(tmp_path / "a.npy", (6, 2, 2), np.float16)


def test_empty_arrays_are_files_too(tmp_path: Path) -> None:
    with ArrayWriter(tmp_path / "a.npy", (0, 3), np.uint8):
        pass
    assert np.load(tmp_path / "a.npy").shape == (0, 3)


def test_missing_rows_are_noticed(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="1 rows, not 2"),
        ArrayWriter(tmp_path / "a.npy", (2, 3), np.uint8) as file,
    ):
        file.append(np.zeros((1, 3), np.uint8))
    assert not (tmp_path / "a.npy").exists()


def test_error_within_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"), ArrayWriter(tmp_path / "a.npy", (2, 3), np.uint8):
        raise OSError("disk")
    assert [p.name for p in tmp_path.iterdir()] == [".a.npy.partial"]


@pytest.mark.parametrize("rows", [np.zeros((1, 4), np.uint8), np.zeros((1, 3), np.float32)])
def test_rows_of_another_kind_are_refused(tmp_path: Path, rows: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="takes uint8"), ArrayWriter(tmp_path / "a.npy", (1, 3), np.uint8) as file:
        file.append(rows)


def test_whole_means_shape_type_and_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 3), np.float32))
    assert is_whole(path, (4, 3), np.float32)
    assert not is_whole(path, (5, 3), np.float32)
    assert not is_whole(path, (4, 3), np.float16)
    assert not is_whole(tmp_path / "b.npy", (4, 3), np.float32)
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_whole(path, (4, 3), np.float32)
    path.write_bytes(b"")
    assert not is_whole(path, (4, 3), np.float32)
