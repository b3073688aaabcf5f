"""Which provider runs: what starts, what is said of one that does not, and TensorRT's options."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from pu_engine.errors import EngineError
from pu_engine.runtime.providers import ProviderChoice, choose_provider, tensorrt_options

needs_no_gpu = pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this onnxruntime has CUDA"
)


@needs_no_gpu
def test_auto_is_the_cpu_where_nothing_else_is_installed() -> None:
    assert choose_provider("auto") == ProviderChoice(name="cpu")


@needs_no_gpu
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_provider_asked_for_is_never_replaced(name: str) -> None:
    with pytest.raises(EngineError, match=f"'{name}' does not start: this onnxruntime was built without it") as caught:
        choose_provider(name)
    assert caught.value.code == "STAGE_PROTOCOL"


@needs_no_gpu
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_one_that_is_listed_but_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels with CUDA list it on machines without a GPU; a session on it then falls back in silence."""
    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: listed)
    choice = choose_provider("auto")
    assert choice.name == "cpu"
    assert [text.split(" does not start")[0] for text in choice.warnings] == [
        "The provider 'tensorrt'",
        "The provider 'cuda'",
    ]
    with pytest.raises(EngineError, match="'cuda' does not start"):
        choose_provider("cuda")


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(EngineError, match="There is no provider 'tpu'"):
        choose_provider("tpu")


def test_tensorrt_has_one_profile_and_keeps_its_engines() -> None:
    options = tensorrt_options("input", (128, 3, 32, 32), Path("/cache"))
    profiles = {options[f"trt_profile_{which}_shapes"] for which in ("min", "opt", "max")}
    assert profiles == {"input:128x3x32x32"}
    assert (options["trt_engine_cache_enable"], options["trt_engine_cache_path"]) == ("1", "/cache")
    assert (options["trt_timing_cache_enable"], options["trt_timing_cache_path"]) == ("1", "/cache")
