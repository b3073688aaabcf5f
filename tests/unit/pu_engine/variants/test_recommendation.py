from __future__ import annotations

from typing import Any

import pytest

from pu_engine.teacher.fact_types import Latency
from pu_engine.types import Variant
from pu_engine.variants.recommendation import overall_factor, recommend


def files(*names: str) -> list[Variant]:
    return [
        Variant(name=n, path=f"{n}.onnx", target="cpu", format="onnx", precision=n[:4], size=1, sha256="", seconds=0.0,
                reproducible=True)
        for n in names
    ]  # fmt: skip


def timed(**milliseconds: Any) -> list[Latency]:
    """Rows of one thread: name=(at batch 1, at batch 32)."""
    return [
        Latency(subject=name.replace("_", "-"), batch=batch, threads=1, p50_ms=ms, p90_ms=ms, runs=9)
        for name, pair in milliseconds.items()
        for batch, ms in zip((1, 32), pair, strict=True)
    ]


ALL = files("fp32", "fp16", "int8-cpu", "int8-trt")


def test_the_fastest_file_is_taken_with_its_factor() -> None:
    rows = timed(fp32=(2.0, 40.0), fp16=(2.1, 41.0), int8_cpu=(1.0, 10.0), int8_trt=(3.0, 60.0))
    (chosen,) = recommend(ALL, rows, (), ("cpu",))
    assert chosen.variant == "int8-cpu"
    assert chosen.reason.startswith("2.8 times fp32's speed")  # the square root of 2 x 4


def test_a_withheld_file_is_not_recommended_however_fast() -> None:
    rows = timed(fp32=(2.0, 40.0), int8_cpu=(1.0, 10.0))
    (chosen,) = recommend(files("fp32", "int8-cpu"), rows, {"int8-cpu"}, ("cpu",))
    assert chosen.variant == "fp32"


@pytest.mark.parametrize("pair", [(2.2, 10.0), (1.0, 44.0), (1.98, 39.6)])
def test_a_file_that_is_slower_at_one_batch_or_hardly_faster_is_not_recommended(pair: tuple[float, float]) -> None:
    rows = timed(fp32=(2.0, 40.0), int8_cpu=pair)
    (chosen,) = recommend(files("fp32", "int8-cpu"), rows, (), ("cpu",))
    assert (chosen.variant, chosen.reason) == ("fp32", "int8-cpu was not faster on this CPU at every batch")


def test_a_device_that_is_not_here_gets_fp16_and_never_an_untimed_int8() -> None:
    (chosen,) = recommend(ALL, timed(fp32=(2.0, 40.0), int8_trt=(0.1, 1.0)), (), ("rtx",))
    assert chosen.variant == "fp16"
    assert "not measured: no such device here" in chosen.reason
    (without,) = recommend(ALL, [], {"fp16"}, ("rtx",))
    assert (without.variant, without.reason.partition(";")[0]) == ("fp32", "no fp16 file that met its gate")


def converted(name: str, form: str, target: str) -> Variant:
    return Variant(
        name=name, path=name, target=target, format=form, precision="int8" if name.endswith("int8") else "fp32",
        size=1, sha256="", seconds=0.0, reproducible=True,
    )  # fmt: skip


def test_another_runtimes_file_is_taken_where_it_is_faster() -> None:
    rows = timed(fp32=(2.0, 40.0), int8_cpu=(1.0, 20.0), openvino_int8=(0.5, 5.0))
    both = [*files("fp32", "int8-cpu"), converted("openvino-int8", "openvino", "cpu")]
    (chosen,) = recommend(both, rows, (), ("cpu",))
    assert chosen.variant == "openvino-int8"


def test_a_phones_file_is_recommended_for_phones_only_however_fast_it_is_here() -> None:
    both = [*files("fp32", "int8-cpu"), converted("executorch", "executorch", "android")]
    rows = timed(fp32=(2.0, 40.0), int8_cpu=(1.9, 39.9), executorch=(0.1, 1.0))
    chosen = recommend(both, rows, (), ("cpu", "android", "ios"))
    assert [c.variant for c in chosen] == ["fp32", "executorch", "executorch"]
    assert chosen[1].reason.startswith("the file for executorch, which you asked for; it met its gate; speed not")


def test_each_target_asked_for_has_its_own_answer() -> None:
    chosen = recommend(ALL, timed(fp32=(2.0, 40.0), int8_cpu=(1.0, 9.0)), (), ("jetson-orin", "android", "cpu"))
    assert [(c.target, c.variant) for c in chosen] == [
        ("jetson-orin", "fp16"), ("android", "fp32"), ("cpu", "int8-cpu")
    ]  # fmt: skip


def test_a_file_that_was_not_timed_has_no_factor() -> None:
    assert overall_factor(timed(fp32=(2.0, 40.0)), "int8-cpu") == 0.0
