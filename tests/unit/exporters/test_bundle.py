"""Bundles: the same bytes each time, nothing missing, and programs that need no more than they say."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from exporters.bundle import (
    DEVICE_MODULES,
    HERE,
    BundleContent,
    BundledVariant,
    Interface,
    Parity,
    bundled_names,
    write_bundle,
)
from exporters.device_build import read_bundle
from exporters.engine_builder import missing
from exporters.errors import ExportError
from exporters.ort_format import write_ort
from exporters.targets import targets
from tests.unit.exporters.small_onnx import write_model

IMAGES = np.random.default_rng(1).integers(0, 256, (8, 8, 8, 3), np.uint8)
INPUTS = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2), dtype=np.float32) / np.float32(255)
# What the device runs imports these beside the standard library; NumPy apart they are imported by name.
DEVICE_PACKAGES = {"numpy", "exporters"}


def answers(model: Path) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    logits: np.ndarray[tuple[int, int], np.dtype[np.float32]] = session.run(None, {"input": INPUTS})[0]
    return logits


def content(folder: Path, target: str = "rtx") -> BundleContent:
    folder.mkdir(exist_ok=True)
    model = write_model(folder / "student.onnx")
    variant = BundledVariant(name="fp32", precision="fp32", path=model, file="student.onnx", expected=answers(model))
    recipe = {"scale": 1 / 255, "mean": [0, 0, 0], "std": [1, 1, 1], "channels": "RGB", "height": 8, "width": 8}
    return BundleContent(
        target=targets()[target],
        student="small",
        labels=("amber", "blue", "green", "plum"),
        preprocessing=recipe,
        interface=Interface(),
        batches=(1, 4, 8),
        variants=(variant,),
        parity=Parity(images=IMAGES, inputs=INPUTS, source="generated"),
    )


def unpack(bundle: Path, folder: Path) -> Path:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
    (unpacked,) = folder.iterdir()
    return unpacked


@pytest.mark.parametrize("target", sorted(targets()))
def test_the_same_content_gives_the_same_bytes(tmp_path: Path, target: str) -> None:
    first = write_bundle(content(tmp_path / "a", target), tmp_path / "first.zip")
    second = write_bundle(content(tmp_path / "b", target), tmp_path / "second.zip")
    assert first == second
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()


def test_a_file_that_needs_another_one_comes_with_it_and_its_words(tmp_path: Path) -> None:
    plain = content(tmp_path / "in", "cpu")
    (tmp_path / "in" / "student.bin").write_bytes(b"weights")
    (tmp_path / "in" / "student.xml").write_bytes(b"structure")
    other = replace(
        plain.variants[0], name="openvino-fp32", path=tmp_path / "in" / "student.xml", file="student.xml",
        beside=(tmp_path / "in" / "student.bin",),
    )  # fmt: skip
    write_bundle(replace(plain, variants=(*plain.variants, other)), tmp_path / "bundle.zip")
    unpacked = unpack(tmp_path / "bundle.zip", tmp_path / "out")
    assert (unpacked / "student.bin").read_bytes() == b"weights"
    assert "## The `.xml` files" in (unpacked / "README.md").read_text()
    listed = [file["path"] for file in json.loads((unpacked / "manifest.json").read_text())["files"]]
    assert {"student.xml", "student.bin"} <= set(listed)


def test_entries_are_sorted_and_say_no_time_and_no_owner(tmp_path: Path) -> None:
    write_bundle(content(tmp_path), tmp_path / "bundle.zip")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        entries = archive.infolist()
    assert [e.filename for e in entries] == sorted(e.filename for e in entries)
    assert {e.date_time for e in entries} == {(1980, 1, 1, 0, 0, 0)}
    assert {e.external_attr >> 16 for e in entries} == {0o100644}
    assert {e.filename.partition("/")[0] for e in entries} == {"bundle-rtx"}


def test_the_manifest_lists_every_file_and_finds_a_changed_one(tmp_path: Path) -> None:
    write_bundle(content(tmp_path), tmp_path / "bundle.zip")
    folder = unpack(tmp_path / "bundle.zip", tmp_path / "unpacked")
    manifest = read_bundle(folder)
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert {row["path"] for row in manifest["files"]} == files - {"manifest.json"}
    assert manifest["labels"] == ["amber", "blue", "green", "plum"] == (folder / "labels.txt").read_text().split()
    (folder / "student.onnx").write_bytes(b"another")
    with pytest.raises(ExportError, match=r"student\.onnx is not the file"):
        read_bundle(folder)


def test_expected_logits_belong_to_the_inputs_and_the_file(tmp_path: Path) -> None:
    made = content(tmp_path)
    write_bundle(made, tmp_path / "bundle.zip")
    folder = unpack(tmp_path / "bundle.zip", tmp_path / "unpacked")
    assert np.array_equal(np.load(folder / "parity/inputs.npy"), INPUTS)
    assert np.array_equal(np.load(folder / "parity/fp32.logits.npy"), made.variants[0].expected)
    assert np.array_equal(np.load(folder / "parity/images.npy"), IMAGES)


def test_phones_get_no_program_that_builds_engines_and_servers_get_a_sample_in_cpp(tmp_path: Path) -> None:
    names = {}
    for target in ("android", "datacenter", "rtx", "cpu"):
        write_bundle(content(tmp_path, target), tmp_path / f"{target}.zip")
        with zipfile.ZipFile(tmp_path / f"{target}.zip") as archive:
            names[target] = {name.partition("/")[2] for name in archive.namelist()}
    assert "build_on_target.py" not in names["android"] | names["cpu"]
    assert {"build_on_target.py", "samples/infer_tensorrt.cpp"} <= names["datacenter"]
    assert "build_on_target.py" in names["rtx"]
    for files in names.values():
        assert {"README.md", "labels.txt", "manifest.json", "student.onnx"} <= files


@pytest.mark.parametrize("target", sorted(targets()))
def test_the_readme_names_the_device_and_says_what_was_not_run(tmp_path: Path, target: str) -> None:
    write_bundle(content(tmp_path, target), tmp_path / "bundle.zip")
    text = (unpack(tmp_path / "bundle.zip", tmp_path / "unpacked") / "README.md").read_text()
    assert targets()[target].device in text
    assert "## What was checked" in text
    assert "student.onnx" in text


def test_bundled_variants_come_in_the_targets_order() -> None:
    assert bundled_names(["int8-cpu", "fp32", "fp16", "int8-trt"], targets()["rtx"]) == ["fp16", "fp32", "int8-trt"]
    assert bundled_names(["fp32"], targets()["android"]) == ["fp32"]


@pytest.mark.parametrize("module", DEVICE_MODULES)
def test_what_the_device_runs_imports_only_numpy_and_runs_on_python_310(module: str) -> None:
    tree = ast.parse((HERE / module).read_text(), feature_version=(3, 10))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    outside = {name for name in names if name.split(".")[0] not in sys.stdlib_module_names}
    assert {name.split(".")[0] for name in outside} <= DEVICE_PACKAGES
    assert {f"{name.removeprefix('exporters.')}.py" for name in outside if name != "numpy"} <= {
        *DEVICE_MODULES, "numpy.typing.py"
    }  # fmt: skip


def test_an_ort_file_answers_as_the_onnx_file(tmp_path: Path) -> None:
    model = write_model(tmp_path / "student.onnx")
    write_ort(model, tmp_path / "student.ort")
    assert (tmp_path / "student.ort").read_bytes()[4:8] == b"ORTM"
    np.testing.assert_allclose(answers(tmp_path / "student.ort"), answers(model), rtol=1e-4, atol=1e-5)


def test_the_sample_for_onnxruntime_runs_in_the_unpacked_bundle(tmp_path: Path) -> None:
    write_bundle(content(tmp_path, "cpu"), tmp_path / "bundle.zip")
    folder = unpack(tmp_path / "bundle.zip", tmp_path / "unpacked")
    done = subprocess.run(
        [sys.executable, str(folder / "samples/infer_onnxruntime.py")], capture_output=True, text=True, check=True
    )
    labels = [line.split()[0] for line in done.stdout.splitlines()]
    expected = [["amber", "blue", "green", "plum"][i] for i in answers(folder / "student.onnx")[:5].argmax(axis=1)]
    assert labels == expected


@pytest.mark.skipif(missing("tensorrt_rtx") is not None, reason="tensorrt_rtx is not installed")
def test_the_program_for_the_device_builds_and_says_that_it_cannot_time_here(tmp_path: Path) -> None:
    write_bundle(content(tmp_path), tmp_path / "bundle.zip")
    folder = unpack(tmp_path / "bundle.zip", tmp_path / "unpacked")
    done = subprocess.run(
        [sys.executable, "-I", str(folder / "build_on_target.py"), "--out", str(tmp_path / "engines")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads((tmp_path / "engines/device-report.json").read_text())
    (row,) = report["variants"]
    assert (tmp_path / "engines" / row["path"]).stat().st_size == row["engine"]["size"] > 0
    if report["device"] is None:
        assert report["not_measured"] == "not measured: no CUDA device here"
        assert row["parity"] is None
        assert row["latencies"] == []
        assert "not measured" in done.stdout
    assert report["recommended"] == "fp32"


def test_a_bundle_for_a_builder_that_is_not_installed_says_what_to_install(tmp_path: Path) -> None:
    if missing("tensorrt") is None:
        pytest.skip("TensorRT is installed here")
    write_bundle(content(tmp_path, "jetson-orin"), tmp_path / "bundle.zip")
    folder = unpack(tmp_path / "bundle.zip", tmp_path / "unpacked")
    done = subprocess.run(
        [sys.executable, str(folder / "build_on_target.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "JetPack brings it" in done.stderr


def test_a_bundle_of_another_schema_is_refused(tmp_path: Path) -> None:
    write_bundle(replace(content(tmp_path), student="other"), tmp_path / "bundle.zip")
    folder = unpack(tmp_path / "bundle.zip", tmp_path / "unpacked")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))
    with pytest.raises(ExportError, match="schema 99"):
        read_bundle(folder)
