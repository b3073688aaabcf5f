"""Engines that are built, checked and timed on the CUDA device here."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporters.bundle import write_bundle
from exporters.cuda_driver import find_device
from exporters.device_build import DeviceOptions, build
from exporters.engine_builder import missing
from tests.unit.exporters.test_bundle import content, unpack

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_device() is None, reason="there is no CUDA device here"),
]


@pytest.mark.parametrize(("builder", "target"), [("tensorrt_rtx", "rtx"), ("tensorrt", "datacenter")])
def test_an_engine_answers_as_its_onnx_file_and_is_timed(tmp_path: Path, builder: str, target: str) -> None:
    lacking = missing(builder)
    if lacking:
        pytest.skip(lacking)
    write_bundle(content(tmp_path, target), tmp_path / "bundle.zip")
    folder = unpack(tmp_path / "bundle.zip", tmp_path / "unpacked")
    options = DeviceOptions(seconds=0.2, timing_cache=tmp_path / "timings")
    report = build(folder, tmp_path, options, lambda what, done, total: None)
    (row,) = report.variants
    assert row.refused == ""
    assert row.parity is not None
    assert row.parity.passed
    assert [latency.batch for latency in row.latencies] == [1, 4, 8]
    assert all(0 < latency.p50_ms <= latency.p90_ms <= latency.p99_ms for latency in row.latencies)
    assert (tmp_path / row.layers).stat().st_size > 0
    assert report.recommended == "fp32"
