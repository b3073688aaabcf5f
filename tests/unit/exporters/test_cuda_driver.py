"""How the driver is called, against a library with its interface on host memory. No test here has a device."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporters import cuda_driver
from exporters.cuda_driver import Device, Stream, find_device
from exporters.errors import ExportError

SOURCE = Path(__file__).with_name("host_cuda.c")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    path = tmp_path_factory.mktemp("cuda") / "libhostcuda.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", path, SOURCE], check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture
def device(library: Any, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(cuda_driver, "_library", lambda: library)
    found = find_device()
    assert found is not None
    return found


def test_a_device_is_described_by_name_capability_and_driver(device: Device) -> None:
    assert device == Device(index=0, name="Host device", capability="SM87", driver="12.6", memory_bytes=8 << 30)
    assert find_device(1) is None


def test_bytes_come_back_from_the_device_as_they_went(device: Device) -> None:
    sent = np.arange(1000, dtype=np.float32)
    back = np.empty_like(sent)
    with Stream(device) as stream:
        memory = stream.allocate(sent.nbytes)
        stream.upload(memory, sent.ctypes.data, sent.nbytes)
        stream.download(back.ctypes.data, memory, back.nbytes)
        stream.wait()
        assert stream.handle
    assert np.array_equal(sent, back)


def test_time_between_two_events_is_the_devices(device: Device) -> None:
    with Stream(device) as stream:
        start, end = stream.event(), stream.event()
        stream.record(start)
        stream.record(end)
        assert stream.milliseconds(start, end) == 1.5


def test_all_that_was_taken_is_given_back(device: Device, library: Any) -> None:
    with Stream(device) as stream:
        stream.allocate(10)
        stream.event()
        assert library.live() == 4
    assert library.live() == 0


def test_an_error_of_the_driver_is_told_in_its_words(device: Device) -> None:
    with Stream(device) as stream, pytest.raises(ExportError, match="error 2: out of memory"):
        stream.allocate(2 << 30)


def test_a_machine_without_a_driver_has_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_driver, "_library", lambda: None)
    assert find_device() is None
    with pytest.raises(ExportError, match="no CUDA driver"):
        Stream(Device(index=0, name="", capability="SM87", driver="", memory_bytes=0))
