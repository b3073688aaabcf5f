from __future__ import annotations

import pytest

from exporters.targets import Target, targets


@pytest.mark.parametrize("target", targets().values(), ids=lambda target: target.name)
def test_every_target_has_a_device_a_known_runtime_and_a_variant_that_always_exists(target: Target) -> None:
    assert target.device
    assert target.runtime in {"onnxruntime", "onnxruntime_mobile", "tensorrt", "tensorrt_rtx"}
    assert "fp32" in target.variants
    assert bool(target.capabilities) == target.has_engines


def test_phones_run_no_engines_and_jetson_builds_on_the_device() -> None:
    known = targets()
    assert not known["android"].has_engines
    assert not known["ios"].has_engines
    assert known["jetson-orin"].capabilities == ("SM87",)
    assert known["jetson-orin"].has_engines
    assert not known["jetson-orin"].ahead_of_time
    assert known["rtx"].ahead_of_time
