"""A twin as a module: it learns, moves, takes any batch, returns taps, and its files hold data only."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from pu_engine.guard import static_guard
from pu_engine.runtime import forward
from pu_engine.twin.structure import TwinUnavailable
from pu_engine.twin.torch_twin import STRUCTURE, WEIGHTS, Twin, build, load, save
from tests.unit.pu_engine.twin_cases import CASES, Case, model_of, node, normal, single, whole

SIDE = 8


def small_network() -> Any:
    """NHWC images, constants of preprocessing, convolution, batch norm, a tap and three logits."""
    nodes = [
        node("Sub", "input mean", "centred"),
        node("Mul", "centred gain", "scaled"),
        node("Transpose", "scaled", "nchw", perm=[0, 3, 1, 2]),
        node("Conv", "nchw 0.weight/kernel:0", "c", pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c s b m v", "n"),
        node("Relu", "n", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "tap_0"),
        node("Gemm", "tap_0 w bias", "output", transB=1),
    ]
    weights = {
        "mean": np.array([0.4, 0.5, 0.6], np.float32),
        "gain": single(4.0),
        "0.weight/kernel:0": normal(6, 3, 3, 3),
        "s": normal(6),
        "b": normal(6),
        "m": normal(6),
        "v": normal(6) ** 2 + np.float32(0.2),
        "w": normal(3, 6),
        "bias": normal(3),
    }
    model = model_of(nodes, weights, (SIDE, SIDE, 3))
    model.graph.output.add(name="tap_0")
    return model


def images(count: int, *shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).random((count, *(shape or (SIDE, SIDE, 3))), dtype=np.float32)


def onnxruntime_outputs(model: Any, rows: NDArray[Any]) -> list[NDArray[Any]]:
    result: list[NDArray[Any]] = forward.stranger_session(model, 1).run(None, {"input": rows})
    return result


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_logits_and_taps_are_onnxruntimes_at_any_batch(batch: int) -> None:
    model, rows = small_network(), images(batch)
    logits, tap = onnxruntime_outputs(model, rows)
    twin = build(model)
    outputs = twin.outputs(torch.from_numpy(rows))
    assert list(outputs) == ["output", "tap_0"]
    np.testing.assert_allclose(twin(torch.from_numpy(rows)).detach(), logits, atol=1e-5)
    np.testing.assert_allclose(outputs["tap_0"].detach(), tap, atol=1e-5)


def test_weights_learn_while_statistics_and_formula_constants_stay() -> None:
    twin = build(small_network())
    assert {name for name, _ in twin.named_parameters()} == {"w_0_weight_kernel_0", "s", "b", "w", "bias"}
    assert {name for name, _ in twin.named_buffers()} == {"mean", "gain", "m", "v", "anchor"}


def test_a_mask_of_attention_does_not_learn() -> None:
    mask = np.where(np.tri(4, dtype=bool), 0, -100).astype(np.float32)
    nodes = [node("MatMul", "input w", "scores"), node("Add", "scores mask", "masked"), node("Softmax", "masked")]
    twin = build(model_of(nodes, {"w": normal(4, 4), "mask": mask}, (2, 4, 4)))
    assert [name for name, _ in twin.named_parameters()] == ["w"]


def test_training_mode_changes_neither_outputs_nor_statistics() -> None:
    twin, rows = build(small_network()), torch.from_numpy(images(4))
    before = {name: value.clone() for name, value in twin.named_buffers()}
    resting = twin.eval()(rows)
    torch.testing.assert_close(twin.train()(rows), resting, rtol=0, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in twin.named_buffers())


def test_gradient_is_the_slope_that_onnxruntime_shows() -> None:
    model, rows = small_network(), images(5)
    twin = build(model)
    gradients = torch.autograd.grad(twin(torch.from_numpy(rows)).square().mean(), list(twin.parameters()))
    names = [name for name, _ in twin.named_parameters()]
    sources = {weight.name: weight.source for weight in twin.structure.weights}
    for name, gradient in zip(names, gradients, strict=True):
        direction = gradient / gradient.norm()
        step = 1e-2
        slopes = []
        for sign in (1, -1):
            moved = copy.deepcopy(model)
            (tensor,) = [t for t in moved.graph.initializer if t.name == sources[name]]
            value = onnx.numpy_helper.to_array(tensor) + sign * step * direction.numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), tensor.name))
            slopes.append(float(np.square(onnxruntime_outputs(moved, rows)[0]).mean()))
        assert (slopes[0] - slopes[1]) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.02), name


def test_a_few_steps_fit_random_labels() -> None:
    twin, rows, labels = build(small_network()), torch.from_numpy(images(12)), torch.arange(12) % 3
    optimiser = torch.optim.Adam(twin.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(twin(rows), labels)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("case", [c for c in CASES if c.weights], ids=lambda c: c.name)
def test_every_parameter_gets_a_finite_gradient(case: Case) -> None:
    twin = build(case.model(case.opsets[-1]))
    parameters = list(twin.parameters())
    if not parameters:
        return
    output = twin(torch.from_numpy(case.rows()))
    for gradient in torch.autograd.grad(output.square().sum(), parameters):
        assert torch.isfinite(gradient).all()


def test_all_of_it_moves_to_another_type_and_place() -> None:
    twin, rows = build(small_network()), torch.from_numpy(images(3))
    expected = twin(rows)
    torch.testing.assert_close(copy.deepcopy(twin).double()(rows).float(), expected, rtol=1e-4, atol=1e-5)
    abroad = copy.deepcopy(twin).to("meta")
    assert abroad(rows.to("meta")).device.type == "meta"


def test_a_shared_weight_stays_one() -> None:
    nodes = [node("MatMul", "input w", "a"), node("Relu", "a", "r"), node("MatMul", "r w", "output")]
    twin = build(model_of(nodes, {"w": normal(4, 4)}, (4,)))
    assert [name for name, _ in twin.named_parameters()] == ["w"]


def test_names_that_become_alike_stay_apart() -> None:
    nodes = [node("Add", "input a.b", "x"), node("Mul", "x a/b", "y"), node("Add", "y forward", "output")]
    weights: dict[str, Any] = {"a.b": normal(4), "a/b": normal(4), "forward": normal(4)}
    model, rows = model_of(nodes, weights, (4,)), images(2, 4)
    twin = build(model)
    assert [name for name, _ in twin.named_parameters()] == ["a_b", "a_b_0", "w_forward"]
    np.testing.assert_allclose(twin(torch.from_numpy(rows)).detach(), onnxruntime_outputs(model, rows)[0], atol=1e-6)


def test_files_give_the_same_twin_and_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    twin, rows = build(small_network()), torch.from_numpy(images(3))
    save(twin, first)
    again = load(first)
    save(again, second)
    assert torch.equal(again(rows), twin(rows))
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in twin.named_parameters()]
    for name in (STRUCTURE, WEIGHTS):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_settings_survive_their_json_form(case: Case, tmp_path: Path) -> None:
    twin, rows = build(case.model(case.opsets[-1])), torch.from_numpy(case.rows())
    save(twin, tmp_path)
    assert torch.equal(load(tmp_path)(rows), twin(rows))


def test_infinite_settings_are_standard_json(tmp_path: Path) -> None:
    nodes = [node("Pad", "input pads value", "padded"), node("MaxPool", "padded", "output", kernel_shape=[2, 2])]
    weights = {"pads": whole(0, 0, 0, 0, 0, 0, 1, 1), "value": single(-np.inf)}
    model, rows = model_of(nodes, weights, (2, 4, 4)), images(2, 2, 4, 4)
    save(build(model), tmp_path)
    json.loads((tmp_path / STRUCTURE).read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    ours = load(tmp_path)(torch.from_numpy(rows))
    np.testing.assert_array_equal(ours, onnxruntime_outputs(model, rows)[0])


@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["steps"][0].update(operator="os.system"),
        lambda data: data["steps"][0]["settings"].update(command="x"),
        lambda data: data["weights"].pop(),
        lambda data: data.update(version=2),
        lambda data: data.update(more=1),
    ],
    ids=["operator", "setting", "weight", "version", "key"],
)
def test_files_that_do_not_fit_are_refused(edit: Callable[[Any], Any], tmp_path: Path) -> None:
    save(build(small_network()), tmp_path)
    data = json.loads((tmp_path / STRUCTURE).read_text())
    edit(data)
    (tmp_path / STRUCTURE).write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"system|command|differ|version|keys"):
        load(tmp_path)


def refused(nodes: list[Any], weights: dict[str, Any], shape: tuple[int, ...] = (4, 6, 6)) -> TwinUnavailable:
    with pytest.raises(TwinUnavailable) as caught:
        build(model_of(nodes, weights, shape))
    return caught.value


def test_an_operator_outside_of_the_table_is_named() -> None:
    error = refused([node("Relu", "input", "r"), node("Hardmax", "r", "output", name="/head/Hardmax")], {})
    assert (error.operator, error.node) == ("Hardmax", "/head/Hardmax")
    assert str(error).startswith("Hardmax '/head/Hardmax': ")


def test_an_unknown_attribute_is_named() -> None:
    error = refused([node("Relu", "input", "output", consumed_inputs=[1])], {})
    assert (error.operator, error.node) == ("Relu", "output")
    assert "consumed_inputs" in error.why


def test_a_form_that_torch_lacks_is_named() -> None:
    settings: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [0, 0, 1, 0], "ceil_mode": 1}
    error = refused([node("Relu", "input", "r"), node("MaxPool", "r", "output", **settings)], {})
    assert (error.operator, error.node, error.why) == ("MaxPool", "output", "it rounds its size up with uneven pads")


def test_a_fill_value_that_is_no_single_number_is_named() -> None:
    empty = numpy_helper.from_array(np.zeros(0, np.float32))
    nodes = [
        node("Shape", "input", "shape"),
        node("ConstantOfShape", "shape", "filled", value=numpy_helper.from_array(np.zeros(1, np.float32))),
        node("Add", "input filled", "output"),
    ]
    build(model_of(nodes, {}, (4,)))
    error = refused([node("Relu", "input", "output", value=empty)], {})
    assert (error.operator, error.why) == ("Relu", "its attribute 'value' is no number")


def test_a_shape_that_depends_on_pixels_is_named() -> None:
    nodes = [
        node("ReduceSum", "input", "sum", keepdims=0),
        node("Cast", "sum", "size", to=TensorProto.INT64),
        node("Unsqueeze", "size zero", "sizes"),
        node("Expand", "input sizes", "output"),
    ]
    error = refused(nodes, {"zero": whole(0)})
    assert (error.operator, error.why) == ("Expand", "its 'shape' depends on the image")


def test_the_batch_as_a_number_in_the_network_is_named() -> None:
    nodes = [
        node("Shape", "input", "shape"),
        node("Cast", "shape", "sizes", to=TensorProto.FLOAT),
        node("ReduceMax", "sizes", "size", keepdims=0),
        node("Mul", "input size", "output"),
    ]
    error = refused(nodes, {}, (1, 1, 1))
    assert (error.operator, error.node) == ("Shape", "shape")


def test_computing_between_quantisers_is_named() -> None:
    nodes = [
        node("QuantizeLinear", "input scale zero", "q"),
        node("Pad", "q pads zero", "padded"),
        node("DequantizeLinear", "padded scale zero", "output"),
    ]
    error = refused(nodes, {"scale": single(0.1), "zero": np.int8(-128), "pads": whole(0, 0, 0, 0, 0, 0, 1, 1)})
    assert (error.operator, error.why) == ("Pad", "it computes with quantised values")


def test_a_fixed_batch_has_no_twin() -> None:
    model = small_network()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(TwinUnavailable, match="batch of 1 only"):
        build(model)


def quantised_network() -> Any:
    """Convolution and Gemm between quantisers; the Relu between them is nothing but the range of an int8."""
    weight = np.round(normal(5, 3, 3, 3) / 0.02).clip(-127, 127).astype(np.int8)
    nodes = [
        node("QuantizeLinear", "input sx zx", "xq"),
        node("DequantizeLinear", "xq sx zx", "x"),
        node("DequantizeLinear", "kq sk zk", "k", axis=0),
        node("DequantizeLinear", "bq sb zb", "b"),
        node("Conv", "x k b", "c", pads=[1, 1, 1, 1]),
        node("QuantizeLinear", "c sc low", "rq"),
        node("DequantizeLinear", "rq sc low", "r"),
        node("ReduceMean", "r", "output", axes=[2, 3], keepdims=0),
    ]
    weights = {
        "sx": single(0.02), "zx": np.int8(0), "kq": weight, "sk": np.full(5, 0.02, np.float32),
        "zk": np.zeros(5, np.int8), "bq": np.array([50, -500, 100, 0, 7], np.int32),
        "sb": single(0.0004), "zb": np.int32(0),
        "sc": single(0.02), "low": np.int8(-128),
    }  # fmt: skip
    return model_of(nodes, weights, (3, SIDE, SIDE))


def test_quantised_graph_learns_and_keeps_its_hidden_relu() -> None:
    model, rows = quantised_network(), images(6, 3, SIDE, SIDE) * 4 - 2
    twin = build(model)
    ours, (theirs,) = twin(torch.from_numpy(rows)).detach().numpy(), onnxruntime_outputs(model, rows)
    np.testing.assert_allclose(ours, theirs, atol=2e-3)
    assert ours.min() >= 0
    assert {name: tuple(p.shape) for name, p in twin.named_parameters()} == {"k": (5, 3, 3, 3), "b": (5,)}
    assert "DequantizeLinear" not in {step.operator for step in twin.structure.steps if "k" in step.inputs}
    for gradient in torch.autograd.grad(twin(torch.from_numpy(rows)).sum(), list(twin.parameters())):
        assert gradient.abs().sum() > 0


def test_integer_input_is_dequantised() -> None:
    nodes = [node("DequantizeLinear", "input s z", "x"), node("ReduceMean", "x", "output", axes=[2, 3], keepdims=0)]
    model = model_of(nodes, {"s": single(0.5), "z": np.int8(3)}, (3, 4, 4), dtype=TensorProto.INT8)
    rows = np.random.default_rng(0).integers(-128, 127, (4, 3, 4, 4)).astype(np.int8)
    np.testing.assert_allclose(build(model)(torch.from_numpy(rows)), onnxruntime_outputs(model, rows)[0], atol=1e-4)


class Block(nn.Module):
    """A vision transformer of one block, with a class token and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 5, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1) + self.positions
        logits: Tensor = self.head(self.norm(self.block(tokens))[:, 0])
        return logits


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Hardswish(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(8, 8, 3, groups=8,
        padding=1), nn.SiLU(), nn.Upsample(scale_factor=2, mode="bilinear"), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(0.3), nn.Linear(32, 3),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dynamo", [False, True], ids=["older exporter", "dynamo"])
@pytest.mark.parametrize("network", [small_cnn, Block], ids=["cnn", "transformer"])
def test_torch_exports_come_back_with_their_gradients(network: Callable[[], nn.Module], dynamo: bool) -> None:
    torch.manual_seed(0)
    module, rows = network().eval(), torch.randn(4, 3, SIDE, SIDE)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)  # the exporters make one tensor of equal ones: an untrained network's norms
    buffer: Any = io.BytesIO()
    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"]}
    if dynamo:
        program = torch.onnx.export(
            module, (rows,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False, **names
        )
        assert program is not None
        data = program.model_proto.SerializeToString()
    else:
        axes = {"input": {0: "N"}, "logits": {0: "N"}}
        torch.onnx.export(module, (rows,), buffer, dynamo=False, opset_version=17, dynamic_axes=axes, **names)
        data = buffer.getvalue()
    twin = build(static_guard.vet(data))
    torch.testing.assert_close(twin(rows), module(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twin(rows[:1]), module(rows[:1]), rtol=1e-4, atol=1e-5)
    learned = sum(p.numel() for p in module.parameters())
    folded = sum(p.numel() for m in module.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
    assert sum(p.numel() for p in twin.parameters()) in (learned, learned - folded)
    ours = torch.autograd.grad(twin(rows).square().sum(), list(twin.parameters()))
    assert all(torch.isfinite(g).all() and g.abs().sum() > 0 for g in ours)


@pytest.mark.slow
def test_compilation_needs_no_break_and_one_graph_for_all_batches() -> None:
    twin = build(next(case for case in CASES if case.name == "Token for each image").model(17))
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 5, 9):
        rows = torch.randn(batch, 4, 6, 6)
        torch.testing.assert_close(compiled(rows), twin(rows))


def test_a_twin_is_made_and_read_without_pickle(tmp_path: Path) -> None:
    twin: Twin = build(small_network())
    save(twin, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["twin.json", "twin.safetensors"]
    assert not any(p.read_bytes().startswith((b"\x80", b"PK")) for p in tmp_path.iterdir())
