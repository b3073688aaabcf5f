from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from exporters import executorch_pte, openvino_ir
from exporters.calibration import observe
from exporters.errors import ExportError
from exporters.executorch_pte import WithInterface
from exporters.inference import logits_of, open_model
from exporters.interface import Interface, Pixels, wrap
from exporters.onnx_file import write_model
from exporters.quantisation import quantise
from exporters.runtime_files import Source
from exporters.runtimes import exporter_of, runtime_names
from tests.unit.exporters.conftest import SIZE, SmallGraph

needs_openvino = pytest.mark.skipif(openvino_ir.missing() != "", reason="openvino is not installed")
needs_executorch = pytest.mark.skipif(executorch_pte.missing() != "", reason="executorch is not installed")
PIXELS = Pixels(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2), reverse=True)
MakeSource = Callable[..., Source]


@pytest.fixture
def make_source(small_graph: SmallGraph, tmp_path: Path) -> MakeSource:
    """The small network with finished files below `tmp_path`."""

    def make(interface: Interface | None = None, max_batch: int = 16) -> Source:
        asked = interface or Interface()
        ranges = observe(small_graph.model, small_graph.batches, threads=1).ranges("minmax", symmetric=False)
        graphs = {"fp32": small_graph.model, "int8-cpu": quantise(small_graph.model, ranges, "int8-cpu")}
        for name, graph in graphs.items():
            write_model(wrap(graph, asked), tmp_path / f"{name}.onnx", {"punnet.labels": "[]"})
        return Source(
            module=small_graph.module, size=SIZE, channels=3, interface=asked, max_batch=max_batch,
            onnx={name: tmp_path / f"{name}.onnx" for name in graphs},
        )  # fmt: skip

    return make


def torch_logits(graph: SmallGraph) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.asarray(graph.module(torch.from_numpy(graph.images)), np.float32)


def relative_error(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    return float(np.abs(before - after).max() / np.abs(before).max())


@needs_openvino
@pytest.mark.parametrize("threads", [1, 2])
def test_openvino_runs_what_torch_computes(
    make_source: MakeSource, small_graph: SmallGraph, tmp_path: Path, threads: int
) -> None:
    fp32, _ = openvino_ir.convert(make_source(), tmp_path)
    run = openvino_ir.load(fp32.path, threads)
    given = np.concatenate([run(small_graph.images[i : i + 5]) for i in range(0, 64, 5)])
    assert relative_error(torch_logits(small_graph), given) < 1e-5


@needs_openvino
def test_openvinos_int8_is_that_of_the_file_for_processors(
    make_source: MakeSource, small_graph: SmallGraph, tmp_path: Path
) -> None:
    source = make_source()
    _, int8 = openvino_ir.convert(source, tmp_path)
    assert (int8.name, int8.made_of, int8.precision) == ("openvino-int8", "int8-cpu", "int8")
    expected = logits_of(open_model(source.onnx["int8-cpu"], threads=1), small_graph.batches(16))
    given = openvino_ir.load(int8.path, 1)(small_graph.images)
    assert relative_error(expected, given) < 0.05  # a rounding here and there falls the other way
    assert int8.beside == (int8.path.with_suffix(".bin"),)


@needs_openvino
def test_openvino_writes_the_same_bytes_again_and_keeps_the_labels(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    written = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        files = openvino_ir.convert(source, tmp_path / name)
        written.append([path.read_bytes() for file in files for path in (file.path, *file.beside)])
    assert written[0] == written[1]
    assert b"punnet.labels" in written[0][0]


@needs_openvino
def test_what_reports_openvinos_import_home_is_not_loaded(make_source: MakeSource, tmp_path: Path) -> None:
    openvino_ir.convert(make_source(), tmp_path)
    assert sys.modules["openvino_telemetry"] is None
    assert "openvino.tools.ovc.telemetry_stub" in sys.modules


@needs_openvino
def test_a_graph_that_openvino_cannot_read_is_named(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    source.onnx["fp32"].write_bytes(b"no graph")
    with pytest.raises(ExportError, match=r"OpenVINO can't read fp32\.onnx"):
        openvino_ir.convert(source, tmp_path)


@needs_executorch
@pytest.mark.slow  # half a minute
def test_executorch_runs_what_torch_computes_at_any_batch_up_to_the_largest(
    make_source: MakeSource, small_graph: SmallGraph, tmp_path: Path
) -> None:
    (file,) = executorch_pte.convert(make_source(max_batch=32), tmp_path)
    assert file.details["largest_batch"] == "32"
    expected = torch_logits(small_graph)
    for threads in (1, 2):
        run = executorch_pte.load(file.path, threads)
        for batch in (32, 1, 7):
            assert relative_error(expected[:batch], run(small_graph.images[:batch])) < 1e-5


@needs_executorch
@pytest.mark.slow  # half a minute
def test_executorch_takes_pixels_and_gives_probabilities_of_a_fixed_batch(
    make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source(Interface(pixels=PIXELS, softmax=True, batch=3))
    (file,) = executorch_pte.convert(source, tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    expected = logits_of(open_model(source.onnx["fp32"], threads=1), iter([pixels]))
    np.testing.assert_allclose(executorch_pte.load(file.path, 1)(pixels), expected, atol=1e-5)


@pytest.mark.parametrize("softmax", [False, True])
def test_the_interface_in_torch_is_that_of_the_onnx_file(small_graph: SmallGraph, softmax: bool) -> None:
    asked = Interface(pixels=PIXELS, softmax=softmax)
    pixels = np.random.default_rng(1).integers(0, 256, (4, SIZE, SIZE, 3), np.uint8)
    expected = logits_of(open_model(wrap(small_graph.model, asked), threads=1), iter([pixels]))
    with torch.no_grad():
        given = WithInterface(small_graph.module, asked)(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(given, expected, atol=1e-5)


@pytest.mark.parametrize(("exporter", "requirement"), [(openvino_ir, "openvino"), (executorch_pte, "executorch")])
def test_a_runtime_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, exporter: Any, requirement: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert exporter.missing().startswith(f"{requirement}>=")


def test_a_user_can_add_a_runtime_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pocket_runtime.py").write_text('def missing():\n    return "pocket>=1"\n')
    add_package(tmp_path, "pocket", "pocket_runtime")
    add_package(tmp_path, "broken", "not_there")
    monkeypatch.syspath_prepend(tmp_path)
    assert runtime_names() == ("openvino", "executorch", "broken", "pocket")
    assert exporter_of("pocket").missing() == "pocket>=1"
    with pytest.raises(ExportError, match="not_there of the runtime 'broken' can't be loaded"):
        exporter_of("broken")


def test_a_runtime_that_nobody_brings_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ExportError, match="0 exporters are installed for the runtime 'toaster'") as caught:
        exporter_of("toaster")
    assert caught.value.remedy == "Choose from openvino, executorch."


def add_package(folder: Path, name: str, module: str) -> None:
    """What an installed package with one entry point leaves on the disk."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[punnet.exporters]\n{name} = {module}\n")
