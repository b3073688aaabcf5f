from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from exporters.errors import ExportError
from exporters.onnx_file import OnnxFacts
from exporters.torch_to_onnx import export_onnx, merge_branches


class Small(nn.Module):
    """A convolution with a BatchNorm of unusual statistics, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))
        return logits


class Branches(nn.Module):
    """Two convolutions that a device needs as one, by timm's verb."""

    def __init__(self) -> None:
        super().__init__()
        self.branches: nn.ModuleList | None = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)])
        self.merged: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.merged is not None:
            return torch.as_tensor(self.merged(x))
        assert self.branches is not None
        return torch.as_tensor(self.branches[0](x) + self.branches[1](x))

    def reparameterize(self) -> None:
        if self.branches is None:
            return
        merged = nn.Conv2d(3, 4, 1)
        merged.load_state_dict(
            {k: v + self.branches[1].state_dict()[k] for k, v in self.branches[0].state_dict().items()}
        )
        self.merged, self.branches = merged, None


class Broken(nn.Module):
    """Depends on its data, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, OnnxFacts]:
    torch.manual_seed(0)
    module = Small().eval()
    path = tmp_path_factory.mktemp("onnx") / "small.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        facts = export_onnx(module, path, size=8, channels=3, metadata={"labels": "[]", "a": "b"})
    return module, path, facts


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_file_computes_what_the_module_does_at_any_batch(
    exported: tuple[nn.Module, Path, OnnxFacts], batch: int
) -> None:
    module, path, _ = exported
    x = torch.randn(batch, 3, 8, 8)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(logits, module(x).numpy(), atol=1e-5)


def test_names_and_free_batch_are_as_promised(exported: tuple[nn.Module, Path, OnnxFacts]) -> None:
    graph = onnx.load(exported[1]).graph
    assert [v.name for v in graph.input] == ["input"]
    assert [v.name for v in graph.output] == ["logits"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_batch_norm_is_folded(exported: tuple[nn.Module, Path, OnnxFacts]) -> None:
    operators = [node.op_type for node in onnx.load(exported[1]).graph.node]
    assert "BatchNormalization" not in operators
    assert exported[2].batch_norms == 0
    assert exported[2].nodes == len(operators)


def test_metadata_is_what_was_given_and_nothing_else(exported: tuple[nn.Module, Path, OnnxFacts]) -> None:
    model = onnx.load(exported[1])
    assert [(p.key, p.value) for p in model.metadata_props] == [("a", "b"), ("labels", "[]")]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_no_path_of_this_machine_is_in_the_file(exported: tuple[nn.Module, Path, OnnxFacts]) -> None:
    data = exported[1].read_bytes()
    assert str(Path(__file__).parents[3]).encode() not in data
    assert b"site-packages" not in data


def test_a_second_export_gives_the_same_bytes(exported: tuple[nn.Module, Path, OnnxFacts], tmp_path: Path) -> None:
    module, path, facts = exported
    again = export_onnx(module, tmp_path / "x.onnx", size=8, channels=3, metadata={"a": "b", "labels": "[]"})
    assert (tmp_path / "x.onnx").read_bytes() == path.read_bytes()
    assert (again.sha256, again.size) == (facts.sha256, facts.size)


def test_export_is_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(Small().eval(), tmp_path / "x.onnx", size=8, channels=3, metadata={})
    assert capfd.readouterr() == ("", "")


def test_a_module_that_depends_on_data_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Broken at 8 pixels") as caught:
        export_onnx(Broken(), tmp_path / "x.onnx", size=8, channels=3, metadata={})
    assert caught.value.code == "EXPORT_FAILED"
    assert not (tmp_path / "x.onnx").exists()


def test_branches_are_merged_in_a_copy() -> None:
    module = nn.Sequential(Branches(), nn.ReLU())
    merged = merge_branches(module)
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(merged(x), module(x))
    assert sum(isinstance(m, nn.Conv2d) for m in merged.modules()) == 1
    assert sum(isinstance(m, nn.Conv2d) for m in module.modules()) == 2
