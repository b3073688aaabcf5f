"""Graph surgery and the choice of the score output, checked by running what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pu_engine.errors import EngineError
from pu_engine.runtime import forward
from pu_engine.teacher import canonicalisation, graph_surgery, score_output
from pu_engine.types import Preprocessing

SIZE, CLASSES = 4, 3
FLOAT = TensorProto.FLOAT
EXAMPLE = Preprocessing(
    layout="NCHW", channels="GRAY", scale=1 / 255, mean=(0.0,), std=(1.0,), dtype="float32", height=SIZE, width=SIZE
)


def teacher(
    tail: list[Any], outputs: list[str], *, batch: int | str = "N", opset: int = 17, reshape: bool = False
) -> Any:
    """Conv, Relu, flattening, Gemm to `z` [N, 3]; then the tail."""
    generator = np.random.default_rng(1)
    weights = {
        "k": generator.normal(size=(2, 1, 3, 3)).astype(np.float32),
        "w": generator.normal(size=(2 * SIZE * SIZE, CLASSES)).astype(np.float32),
        "shape": np.array([batch if isinstance(batch, int) else -1, 2 * SIZE * SIZE], np.int64),
        "scale": np.float32(1 / 256),
        "zero": np.int8(-128),
    }
    flatten = (
        helper.make_node("Reshape", ["r", "shape"], ["f"]) if reshape else helper.make_node("Flatten", ["r"], ["f"])
    )
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        flatten,
        helper.make_node("Gemm", ["f", "w"], ["z"]),
        *tail,
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [batch, 1, SIZE, SIZE])],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def canonical(model: Any, *, labels: int = CLASSES, stated: int = 0) -> canonicalisation.Canonical:
    return canonicalisation.canonicalise(model, EXAMPLE, labels=labels, stated=stated, seed=0, threads=1)


def images(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(2).uniform(size=(count, 1, SIZE, SIZE)).astype(np.float32)


def scores_of(model: Any, rows: NDArray[np.float32]) -> NDArray[Any]:
    return forward.run_rows(forward.stranger_session(model, 1), rows, None)[0]


LOGITS = scores_of(teacher([], ["z"]), images(7))


@pytest.mark.parametrize(
    ("tail", "kind"),
    [
        ([], "logits"),
        ([helper.make_node("Identity", ["z"], ["y"])], "logits"),
        ([helper.make_node("Softmax", ["z"], ["y"], axis=1)], "probabilities"),
        ([helper.make_node("LogSoftmax", ["z"], ["y"], axis=1)], "log_probabilities"),
        ([helper.make_node("Sigmoid", ["z"], ["y"])], "probabilities"),
        ([helper.make_node("Softmax", ["z"], ["p"]), helper.make_node("Identity", ["p"], ["y"])], "probabilities"),
    ],
)
def test_normaliser_at_the_end_is_stripped(tail: list[Any], kind: str) -> None:
    found = canonical(teacher(tail, ["y" if tail else "z"]))
    assert found.output.kind == kind
    assert found.batch is None
    np.testing.assert_allclose(scores_of(found.model, images(7)), LOGITS, rtol=1e-5)


def test_quantised_probabilities_give_the_logits_before_them() -> None:
    tail = [
        helper.make_node("Softmax", ["z"], ["p"]),
        helper.make_node("QuantizeLinear", ["p", "scale", "zero"], ["y"]),
    ]
    model = teacher(tail, ["y"])
    found = canonical(model)
    assert found.output.tail.step == pytest.approx(1 / 256)
    np.testing.assert_allclose(scores_of(found.model, images(7)), LOGITS, rtol=1e-5)
    canonicalisation.check_parity(model, found, images(7), LOGITS.astype(np.float64), 1)


def test_probabilities_without_a_softmax_become_their_logarithm() -> None:
    tail = [
        helper.make_node("Exp", ["z"], ["e"]),
        helper.make_node("ReduceSum", ["e", "axis"], ["s"]),
        helper.make_node("Div", ["e", "s"], ["y"]),
    ]
    model = teacher(tail, ["y"])
    model.graph.initializer.append(numpy_helper.from_array(np.array([1]), "axis"))
    found = canonical(model)
    assert (found.output.kind, found.output.logarithm) == ("probabilities", True)
    expected = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(scores_of(found.model, images(7)), expected, atol=1e-4)


def test_scores_of_rank_four_and_half_precision_become_float_rows() -> None:
    tail = [
        helper.make_node("Cast", ["z"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Unsqueeze", ["h", "axes"], ["y"]),
    ]
    model = teacher(tail, ["y"])
    model.graph.initializer.append(numpy_helper.from_array(np.array([2, 3]), "axes"))
    scores = scores_of(canonical(model).model, images(7))
    assert scores.dtype == np.float32
    assert scores.shape == (7, CLASSES)
    np.testing.assert_allclose(scores, LOGITS, rtol=2e-3)


def test_features_given_out_first_are_not_the_scores() -> None:
    found = canonical(teacher([], ["f", "z"]), labels=2)
    assert (found.output.tail.logits, found.output.classes) == ("z", CLASSES)


def test_output_whose_size_is_the_number_of_labels_wins() -> None:
    model = teacher([helper.make_node("Gemm", ["f", "w2"], ["other"])], ["other", "z"])
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2 * SIZE * SIZE, 9), np.float32), "w2"))
    assert canonical(model, labels=3).output.tail.logits == "z"
    assert canonical(model, labels=9).output.tail.logits == "other"


@pytest.mark.parametrize("batch", [1, 2])
def test_fixed_batch_is_freed_where_a_reshape_holds_it(batch: int) -> None:
    found = canonical(teacher([], ["z"], batch=batch, reshape=True))
    assert found.batch is None
    np.testing.assert_allclose(scores_of(found.model, images(7)), LOGITS, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("in_order", "freed"), [(True, True), (False, False)])
def test_fixed_batch_is_freed_where_a_gather_takes_all_values_in_order(batch: int, in_order: bool, freed: bool) -> None:
    model = teacher([], ["z"], batch=batch)
    places = np.arange(batch * 2 * SIZE * SIZE)
    shown = places if in_order else places.reshape(batch, -1)[:, ::-1]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
    model.graph.initializer.append(numpy_helper.from_array(shown.reshape(batch, 2, SIZE, SIZE), "places"))
    model.graph.node[2].input[0] = "g"
    model.graph.node.insert(2, helper.make_node("Reshape", ["r", "flat"], ["v"]))
    model.graph.node.insert(3, helper.make_node("Gather", ["v", "places"], ["g"], axis=0))
    assert (canonical(model).batch is None) == freed


@pytest.mark.parametrize(("batch", "same_rows"), [(1, True), (2, True), (2, False)])
def test_fixed_batch_is_freed_where_a_class_token_holds_it(batch: int, same_rows: bool) -> None:
    rows = np.arange(batch * 6.0, dtype=np.float32).reshape(batch, 1, 6)
    token = np.repeat(rows[:1], batch, axis=0) if same_rows else rows
    model = teacher([], ["s"], batch=batch)
    model.graph.initializer.append(numpy_helper.from_array(token, "token"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 6, -1]), "pairs"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((6, CLASSES), np.float32), "head"))
    model.graph.node[3].input[1] = "identity"
    model.graph.initializer.append(numpy_helper.from_array(np.eye(2 * SIZE * SIZE, 36, dtype=np.float32), "identity"))
    model.graph.node.extend(
        [
            helper.make_node("Reshape", ["z", "pairs"], ["tokens"]),
            helper.make_node("Concat", ["token", "tokens"], ["all"], axis=1),
            helper.make_node("ReduceMean", ["all"], ["mean"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["mean", "head"], ["s"]),
        ]
    )
    assert canonical(model).batch == (None if same_rows else batch)


@pytest.mark.parametrize(("declared", "kept"), [("N", 1), (1, 1), (8, 8)])
def test_batch_that_scores_depend_on_stays(declared: int | str, kept: int) -> None:
    tail = [helper.make_node("ReduceMax", ["z"], ["m"], keepdims=1), helper.make_node("Div", ["z", "m"], ["y"])]
    assert canonical(teacher(tail, ["y"], batch=declared)).batch == kept


def test_names_that_punnet_uses_are_freed() -> None:
    model = teacher([helper.make_node("Softmax", ["logits"], ["input"])], ["input"])
    model.graph.node[3].output[0] = "logits"
    found = canonical(model)
    assert [item.name for item in found.model.graph.input] == ["input"]
    assert [item.name for item in found.model.graph.output] == ["logits"]
    np.testing.assert_allclose(scores_of(found.model, images(7)), LOGITS, rtol=1e-5)


def test_nodes_that_only_other_outputs_need_are_dropped() -> None:
    model = teacher([helper.make_node("Relu", ["c"], ["unused"])], ["z", "unused"])
    found = canonical(model)
    assert sum(node.op_type == "Relu" for node in found.model.graph.node) == 1
    assert {t.name for t in found.model.graph.initializer} == {"k", "w"}


def test_models_that_are_no_classifiers_are_refused() -> None:
    two_inputs = teacher([], ["z"])
    two_inputs.graph.input.append(helper.make_tensor_value_info("mask", FLOAT, [1]))
    only_a_map, too_few = teacher([], ["r"]), teacher([], ["z"])
    for model, labels, code in (
        (two_inputs, 3, "TEACHER_NOT_A_CLASSIFIER"),
        (only_a_map, 3, "TEACHER_NOT_A_CLASSIFIER"),
        (too_few, 4, "LABELS_UNMAPPABLE"),
    ):
        with pytest.raises(EngineError) as caught:
            canonical(model, labels=labels)
        assert caught.value.code == code


def test_model_that_does_not_run_is_a_typed_error() -> None:
    model = teacher([], ["z"])
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.zeros((5, CLASSES), np.float32), "w"))
    with pytest.raises(EngineError) as caught:
        canonical(model)
    assert caught.value.code == "MODEL_BAD_GRAPH"
    assert caught.value.details["onnxruntime"]


def test_parity_gate_sees_other_scores() -> None:
    model = teacher([helper.make_node("Softmax", ["z"], ["y"])], ["y"])
    found = canonical(model)
    canonicalisation.check_parity(model, found, images(7), LOGITS.astype(np.float64), 1)
    with pytest.raises(EngineError) as caught:
        canonicalisation.check_parity(model, found, images(7), LOGITS[::-1].astype(np.float64), 1)
    assert caught.value.code == "PARITY_FAILED"


def test_constants_become_initialisers() -> None:
    model = teacher([], ["z"])
    node = helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.array([2])))
    model.graph.node.insert(0, node)
    graph_surgery.hoist_constants(model)
    assert "Constant" not in {n.op_type for n in model.graph.node}
    assert graph_surgery.constants(model)["two"].tolist() == [2]


def test_zipmap_is_looked_through() -> None:
    tail = [
        helper.make_node("Softmax", ["z"], ["p"]),
        helper.make_node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
    ]
    found = score_output.tails(teacher(tail, ["y"]))
    assert [(t.output, t.logits, t.normaliser) for t in found] == [("p", "z", "Softmax")]


def test_padding_of_the_last_rows_is_cut_off() -> None:
    session = forward.stranger_session(teacher([], ["z"], batch=4), 1)
    np.testing.assert_allclose(forward.run_rows(session, images(7), 4)[0], LOGITS, rtol=1e-5)
