from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from exporters.cuda_driver import Device
from exporters.device_facts import served_targets
from exporters.device_report import EngineParity, VariantReport, compare, recommend
from exporters.engine_builder import EngineFacts
from exporters.engine_run import EngineLatency, latency_of

EXPECTED = np.eye(4, dtype=np.float32)[np.arange(100) % 4] * 10
ENGINE = EngineFacts(
    address="a", sha256="b", size=1, onnx_sha256="c", builder="tensorrt_rtx", version="1.7", capabilities=("SM89",),
    batches=(1, 8, 64), seconds=1.0,
)  # fmt: skip
ORIN = Device(index=0, name="Orin", capability="SM87", driver="12.6", memory_bytes=1 << 33)


def report(name: str, milliseconds: float | None = None, *, passed: bool = True) -> VariantReport:
    parity = EngineParity(images=64, agreement=1.0, max_error=0.0, gate="", passed=passed)
    timed = () if milliseconds is None else (latency_of([milliseconds] * 3, 1),)
    return VariantReport(
        name=name, precision=name, onnx_sha256="c", engine=ENGINE, parity=parity if timed else None, latencies=timed
    )


def answer(**changes: float) -> NDArray[np.float32]:
    """The expected logits with the first row's values changed."""
    changed = EXPECTED.copy()
    for column, value in changes.items():
        changed[0, int(column[1:])] = value
    return changed


def test_equal_logits_pass_and_the_worst_batch_counts() -> None:
    assert compare(EXPECTED, [EXPECTED, EXPECTED], "fp32").passed
    bad = -EXPECTED
    found = compare(EXPECTED, [EXPECTED, bad], "fp32")
    assert (found.passed, found.agreement, found.max_error) == (False, 0.0, 2.0)


def test_two_classes_that_are_nearly_equal_are_a_tie() -> None:
    near = answer(_1=10.005)  # one thousandth of the largest logit is 0.01
    assert compare(EXPECTED, [near], "int8").agreement == 1.0
    assert compare(EXPECTED, [answer(_1=10.02)], "int8").agreement == 0.99


@pytest.mark.parametrize(
    ("precision", "error", "passed"), [("fp32", 0.2, False), ("fp16", 0.2, True), ("int8", 1.5, True)]
)
def test_each_precision_has_its_own_bound(precision: str, error: float, passed: bool) -> None:
    assert compare(EXPECTED, [answer(_0=10 + error)], precision).passed is passed


def test_a_nan_fails_whichever_batch_it_is_in() -> None:
    broken = answer(_2=math.nan)
    for answers in ([EXPECTED, broken], [broken, EXPECTED]):
        assert not compare(EXPECTED, answers, "int8").passed


def test_the_fastest_that_passed_is_recommended() -> None:
    name, why = recommend([report("fp16", 1.0), report("int8-trt", 0.5), report("fp32", 0.1, passed=False)])
    assert name == "int8-trt"
    assert "0.500 ms" in why


def test_an_earlier_variant_is_kept_unless_a_later_one_is_clearly_faster() -> None:
    assert recommend([report("fp16", 1.0), report("int8-trt", 0.98)])[0] == "fp16"


def test_without_times_the_first_that_was_built_is_taken_and_the_reason_says_so() -> None:
    refused = VariantReport(name="fp16", precision="fp16", onnx_sha256="c", refused="no")
    name, why = recommend([refused, report("fp32")])
    assert name == "fp32"
    assert "not measured" in why


def test_where_nothing_was_built_nothing_is_recommended() -> None:
    assert recommend([VariantReport(name="fp16", precision="fp16", onnx_sha256="c", refused="no")])[0] == ""


def test_latency_is_a_percentile_of_single_runs() -> None:
    found = latency_of([float(n) for n in range(1, 102)], batch=4)
    assert found == EngineLatency(
        batch=4, p50_ms=51.0, p90_ms=91.0, p99_ms=100.0, images_per_second=4000 / 51, runs=101
    )


def test_a_device_serves_the_targets_of_its_capability_whose_builder_is_there() -> None:
    assert served_targets({"tensorrt", "tensorrt_rtx"}, ORIN) == ["jetson-orin"]
    assert served_targets({"tensorrt_rtx"}, ORIN) == []
    assert served_targets({"tensorrt"}, None) == []
