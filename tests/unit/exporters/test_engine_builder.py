from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exporters import engine_builder
from exporters.cuda_driver import Device
from exporters.engine_builder import EngineFacts, EngineRequest, build_here, engine_address, missing
from exporters.errors import BuildCancelledError, ExportError
from tests.unit.exporters.small_onnx import write_model

needs_rtx = pytest.mark.skipif(missing("tensorrt_rtx") is not None, reason="tensorrt_rtx is not installed")


def request(model: Path, *capabilities: str, **more: Any) -> EngineRequest:
    values = {"builder": "tensorrt_rtx", "batches": (1, 8, 64), **more}
    return EngineRequest(onnx=str(model), capabilities=capabilities, **values)


def build(asked: EngineRequest, path: Path) -> EngineFacts:
    return build_here(asked, path, lambda phase, done, total: True)


@pytest.mark.parametrize(("builder", "extra"), [("tensorrt_rtx", "punnet[rtx]"), ("tensorrt", "punnet[trt]")])
def test_a_machine_without_the_package_is_told_what_is_missing(
    builder: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, builder, None)
    said = missing(builder)
    assert said is not None
    assert extra in said


@needs_rtx
def test_an_engine_for_three_generations_is_built_without_a_gpu(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    facts = build(request(model, "SM86", "SM89", "SM120", workspace_bytes=1 << 28), tmp_path / "small.engine")
    assert facts.batches == (1, 8, 64)
    assert facts.size == (tmp_path / "small.engine").stat().st_size > 1000
    assert facts.capabilities == ("SM86", "SM89", "SM120")
    assert facts.version.startswith("1.")
    assert list(tmp_path.glob(".*")) == []


@needs_rtx
def test_the_address_follows_the_file_the_profile_the_capabilities_and_the_flags(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    plain = request(model, "SM86", "SM89")
    same = replace(plain, capabilities=("SM89", "SM86"), onnx="elsewhere.onnx", timing_cache="anywhere")
    assert engine_address(plain, "a") == engine_address(same, "a")
    others = [
        engine_address(plain, "b"),
        engine_address(replace(plain, batches=(1, 8, 32)), "a"),
        engine_address(replace(plain, capabilities=("SM89",)), "a"),
        engine_address(replace(plain, workspace_bytes=1 << 20), "a"),
        engine_address(replace(plain, version_compatible=True), "a"),
    ]
    assert len({engine_address(plain, "a"), *others}) == 6


@needs_rtx
def test_an_operator_that_is_not_supported_is_named_with_its_node(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "small.onnx", "Det")
    with pytest.raises(ExportError) as caught:
        build(request(model, "SM89"), tmp_path / "small.engine")
    assert "Det" in caught.value.message
    assert caught.value.details["nodes"] == "second0"
    assert not (tmp_path / "small.engine").exists()
    assert capfd.readouterr() == ("", "")


@needs_rtx
def test_a_network_that_a_generation_cannot_compile_says_why(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    with pytest.raises(ExportError, match="GEMM"):
        build(request(model, "SM75"), tmp_path / "small.engine")


@needs_rtx
def test_an_unknown_capability_lists_the_known_ones(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    with pytest.raises(ExportError, match="SM87") as caught:
        build(request(model, "SM87"), tmp_path / "small.engine")
    assert "SM86" in caught.value.remedy


@needs_rtx
def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match=r"can't read broken\.onnx"):
        build(request(tmp_path / "broken.onnx", "SM89"), tmp_path / "x.engine")


@needs_rtx
@pytest.mark.parametrize("flag", ["version_compatible", "hardware_compatible"])
def test_a_flag_that_tensorrt_rtx_lacks_is_refused(tmp_path: Path, flag: str) -> None:
    model = write_model(tmp_path / "small.onnx")
    with pytest.raises(ExportError, match=flag):
        build(request(model, "SM89", **{flag: True}), tmp_path / "x.engine")


@needs_rtx
def test_a_builder_stops_between_two_steps(tmp_path: Path) -> None:
    model = write_model(tmp_path / "small.onnx")
    with pytest.raises(BuildCancelledError):
        build_here(request(model, "SM89"), tmp_path / "x.engine", lambda phase, done, total: False)
    assert not (tmp_path / "x.engine").exists()


def test_tensorrt_builds_only_where_the_device_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_builder, "find_device", lambda: None)
    with pytest.raises(ExportError, match="no CUDA device here") as caught:
        engine_builder.built_for(request(tmp_path / "x.onnx", "SM87", builder="tensorrt"))
    assert "build_on_target.py" in caught.value.remedy


def test_a_device_of_another_family_is_refused_unless_the_engine_is_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Device(index=0, name="Some card", capability="SM86", driver="13.0", memory_bytes=1 << 33)
    monkeypatch.setattr(engine_builder, "find_device", lambda: card)
    asked = request(tmp_path / "x.onnx", "SM87", builder="tensorrt")
    with pytest.raises(ExportError, match="Some card is SM86; the engine is for SM87"):
        engine_builder.built_for(asked)
    assert engine_builder.built_for(replace(asked, hardware_compatible=True)) == ("ampere-plus",)
    assert engine_builder.built_for(replace(asked, capabilities=())) == ("SM86",)
