"""Intake as a whole: a stripe-and-tint teacher in many disguises, and real teachers where they are at hand."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pu_engine import intake
from pu_engine.errors import EngineError
from pu_engine.jsonform import to_json
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256
from pu_engine.teacher import probed
from pu_engine.teacher.labels import ClassOrder
from pu_engine.types import File, IntakeInputs, LabelledImages, StatedPreprocessing, Teacher

SIDE = 8
TINTS = {"amber": (220, 150, 30), "blue": (30, 60, 220), "green": (60, 190, 70)}
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def file_of(path: Path) -> File:
    return File(path=str(path), sha256=file_sha256(path))


def write_images(path: Path, counts: dict[str, int]) -> File:
    """A tar of noisy tinted PNG images, `counts` of each label; labels beyond the tints share their colours."""
    generator = np.random.default_rng(4)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for place, (label, count) in enumerate(counts.items()):
            tint = TINTS.get(label, list(TINTS.values())[place % 3])
            for index in range(count):
                noisy = generator.normal(tint, 45, (SIDE, SIDE, 3)).clip(0, 255).astype(np.uint8)
                buffer = io.BytesIO()
                Image.fromarray(noisy).save(buffer, "PNG")
                member = tarfile.TarInfo(f"{label}/{index:03d}.png")
                member.size = len(buffer.getvalue())
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
    return file_of(path)


def teacher_bytes(
    order: tuple[str, ...] = ("amber", "blue", "green"),
    *,
    gain: float = 40.0,
    bias: float = 0.0,
    edit: Callable[[Any], None] | None = None,
) -> bytes:
    """Nearest tint, as a network on ImageNet-normalised RGB: |x - tint| pooled, negated."""
    tints = (np.array([TINTS[name] for name in order]) / 255 - MEAN) / STD
    weights = {
        "k": np.repeat(np.eye(3, dtype=np.float32), len(order), axis=0).reshape(3 * len(order), 3, 1, 1),
        "b": -tints.T.reshape(-1).astype(np.float32),
        "w": np.tile(-gain * np.eye(len(order), dtype=np.float32), (3, 1)) / 9,
        "bias": np.full(len(order), bias, np.float32),
    }
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        helper.make_node("Conv", ["m", "k", "b"], ["c"]),
        helper.make_node("Abs", ["c"], ["a"]),
        helper.make_node("Flatten", ["a"], ["f"]),
        helper.make_node("Gemm", ["f", "w", "bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tints",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", len(order)])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="by-hand")
    if edit is not None:
        edit(model)
    data: bytes = model.SerializeToString()
    return data


def take_in(folder: Path, data: bytes, counts: dict[str, int], **options: Any) -> tuple[Teacher, Path, SilentProgress]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "teacher.onnx").write_bytes(data)
    out, progress = folder / "out", SilentProgress()
    out.mkdir(exist_ok=True)
    inputs = IntakeInputs(
        teacher=file_of(folder / "teacher.onnx"),
        images=LabelledImages(tar=write_images(folder / "images.tar", counts)),
        **options,
    )
    return intake.run(inputs, out, progress), out, progress


EVENLY = dict.fromkeys(TINTS, 20)


def refusal(folder: Path, data: bytes, counts: dict[str, int], **options: Any) -> str:
    with pytest.raises(EngineError) as caught:
        take_in(folder, data, counts, **options)
    return caught.value.code


def test_conventions_files_and_facts_are_found(tmp_path: Path) -> None:
    teacher, out, progress = take_in(tmp_path, teacher_bytes(), EVENLY)
    found = teacher.preprocessing
    assert (found.layout, found.channels, found.dtype, found.height, found.width) == ("NCHW", "RGB", "float32", 8, 8)
    assert teacher.accuracy == 1.0
    assert teacher.accuracy_low < 1.0 == teacher.accuracy_high
    assert (teacher.output, teacher.batch, teacher.classes) == ("logits", None, 3)
    assert teacher.class_names == ("amber", "blue", "green")
    assert (teacher.opset, teacher.producer, teacher.parameters, teacher.macs) == (17, "by-hand", 66, 9 * 3 + 27)
    assert sorted(p.name for p in out.iterdir()) == [
        "canonical.onnx", "labelled.json", "probed.json", "probed.logits.npy", "tapped.onnx", "twin.json",
        "twin.safetensors",
    ]  # fmt: skip
    assert progress.warnings == list(teacher.warnings)


def test_imagenet_scaling_is_found_or_agrees(tmp_path: Path) -> None:
    teacher, _, _ = take_in(tmp_path, teacher_bytes(), EVENLY)
    right = [h for h in teacher.hypotheses if h.preprocessing.mean == tuple(MEAN) and h.preprocessing.channels == "RGB"]
    assert max(h.agreement for h in right) >= 0.95


def test_outputs_have_the_promised_names_and_shapes(tmp_path: Path) -> None:
    teacher, out, _ = take_in(tmp_path, teacher_bytes(), EVENLY)
    rows = np.zeros((5, 3, SIDE, SIDE), np.float32)
    session = ort.InferenceSession(str(out / "tapped.onnx"))
    outputs = session.run(None, {"input": rows})
    promised = [(name, tap.width) for tap in teacher.taps for name in (tap.name, tap.spread) if name]
    assert [item.name for item in session.get_outputs()] == ["logits", *(name for name, _ in promised)]
    assert [value.shape for value in outputs] == [(5, 3), *((5, width) for _, width in promised)]
    logits = ort.InferenceSession(str(out / "canonical.onnx")).run(["logits"], {"input": rows})[0]
    np.testing.assert_allclose(outputs[0], logits, rtol=1e-5)


def test_split_is_written_before_and_apart_from_the_probe(tmp_path: Path) -> None:
    teacher, out, _ = take_in(tmp_path, teacher_bytes(), EVENLY)
    rows = json.loads((out / "labelled.json").read_text())
    assert len(rows) == 60
    assert [row["key"].split("/")[0] for row in rows] == [row["label"] for row in rows]
    assert {row["label"]: row["index"] for row in rows} == dict(teacher.class_order)
    assert sum(row["held_out"] for row in rows) == 6
    with tarfile.open(tmp_path / "images.tar") as tar:
        first = tar.extractfile(rows[0]["key"])
        assert first is not None
        assert rows[0]["sha256"] == hashlib.sha256(first.read()).hexdigest()
    assert teacher.images == 54


def test_run_repeats_to_the_byte_even_over_leftovers(tmp_path: Path) -> None:
    first, out, _ = take_in(tmp_path, teacher_bytes(), EVENLY)
    digests = {p.name: file_sha256(p) for p in out.iterdir()}
    (out / "tapped.onnx").write_bytes(b"half")
    second, _, _ = take_in(tmp_path, teacher_bytes(), EVENLY)
    assert {p.name: file_sha256(p) for p in out.iterdir()} == digests
    assert to_json(first, measured=False) == to_json(second, measured=False)


def test_facts_are_measured_on_the_way(tmp_path: Path) -> None:
    teacher, _, _ = take_in(tmp_path, teacher_bytes(), EVENLY)
    facts = teacher.facts
    assert (facts.ir_version, facts.opsets) == (8, {"ai.onnx": 17})
    assert facts.operators == {"Abs": 1, "Conv": 1, "Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1}
    assert facts.activation_bytes == 4 * (3 * SIDE * SIDE + 3)  # the image and its mean
    assert [row.batch for row in facts.latencies] == [1, 32]
    assert facts.tensorrt.refused_nodes == 0


def test_taps_are_those_that_the_user_names(tmp_path: Path) -> None:
    teacher, out, _ = take_in(tmp_path, teacher_bytes(), EVENLY, taps=("a", "c"))
    assert [tap.source for tap in teacher.taps] == ["c:NCHW", "a:NCHW"]
    assert teacher.taps_stated
    assert {"c", "a"} <= {row.name for row in teacher.tap_candidates}
    names = [item.name for item in onnx.load(out / "tapped.onnx").graph.output]
    assert names == ["logits", "tap_0", "tap_0_spread", "tap_1", "tap_1_spread"]


def test_tap_behind_the_scores_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, teacher_bytes(), EVENLY, taps=("y",)) == "TAP_INVALID"


def test_probed_images_are_kept_with_their_logits(tmp_path: Path) -> None:
    teacher, out, _ = take_in(tmp_path, teacher_bytes(("green", "amber", "blue")), EVENLY)
    found = probed.read(out)
    assert len(found.rows) == teacher.images
    assert all(row.index == teacher.class_order[row.label] for row in found.rows)
    share = np.mean(found.logits.argmax(axis=1) == [row.index for row in found.rows])
    assert share == 1.0


def test_order_of_outputs_is_found_from_the_images(tmp_path: Path) -> None:
    teacher, _, _ = take_in(tmp_path, teacher_bytes(("green", "amber", "blue")), EVENLY)
    assert teacher.class_order == {"amber": 1, "blue": 2, "green": 0}
    assert any("state class names" in text for text in teacher.warnings)
    stated, _, _ = take_in(
        tmp_path, teacher_bytes(("green", "amber", "blue")), EVENLY, class_names=("green", "amber", "blue")
    )
    assert stated.class_order == teacher.class_order


def test_softmax_teacher_gives_its_logits(tmp_path: Path) -> None:
    def normalise(model: Any) -> None:
        model.graph.node.append(helper.make_node("Softmax", ["y"], ["p"]))
        model.graph.output[0].name = "p"

    teacher, out, _ = take_in(tmp_path, teacher_bytes(edit=normalise), EVENLY)
    assert teacher.output == "probabilities"
    assert "Softmax" not in {node.op_type for node in onnx.load(out / "canonical.onnx").graph.node}


def test_background_class_shifts_the_order(tmp_path: Path) -> None:
    def background(model: Any) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1, 0, 0]), "pads"))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(-99), "low"))
        model.graph.node.append(helper.make_node("Pad", ["y", "pads", "low"], ["z"]))
        model.graph.output[0].name = "z"
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4

    teacher, _, _ = take_in(tmp_path, teacher_bytes(edit=background), EVENLY)
    assert teacher.class_order == {"amber": 1, "blue": 2, "green": 3}
    assert not any("no labelled image" in text for text in teacher.warnings)


@pytest.mark.parametrize(
    ("index", "offset", "names"),
    [
        ({"1": 0, "2": 1, "4": 3}, -1, ("1", "2", "3", "4")),
        ({"0": 1, "2": 3}, 1, ("background", "0", "1", "2")),
        ({"2": 0, "cat": 1}, 0, ("2", "cat", "output 2", "3")),
    ],
)
def test_outputs_without_labels_are_numbered_as_the_labels_are(
    index: dict[str, int], offset: int, names: tuple[str, ...]
) -> None:
    assert intake._class_names(ClassOrder(source="integers", index=index, offset=offset), (), 4) == names


def test_no_two_outputs_have_one_name() -> None:
    order = ClassOrder(source="assigned", index={"2": 0, "output 2": 1})
    with pytest.raises(EngineError) as caught:
        intake._class_names(order, (), 3)
    assert caught.value.code == "LABELS_UNMAPPABLE"


def test_statement_is_used_and_shown_first(tmp_path: Path) -> None:
    stated = StatedPreprocessing(channels="RGB", scale=1 / 255, mean=tuple(MEAN), std=tuple(STD))
    teacher, _, _ = take_in(tmp_path, teacher_bytes(), EVENLY, preprocessing=stated)
    assert teacher.preprocessing.mean == tuple(MEAN)
    assert teacher.hypotheses[0].preprocessing == teacher.preprocessing
    assert not any("stated preprocessing is used" in text for text in teacher.warnings)


def test_better_preprocessing_than_the_stated_one_is_reported(tmp_path: Path) -> None:
    wrong = StatedPreprocessing(channels="RGB", scale=1 / 255, mean=(0.0,) * 3, std=(1.0,) * 3)
    teacher, _, _ = take_in(tmp_path, teacher_bytes(gain=4.0), EVENLY, preprocessing=wrong)
    assert teacher.preprocessing.mean == (0.0,) * 3
    (warning,) = [text for text in teacher.warnings if "stated preprocessing is used" in text]
    assert "Leave the statement out" in warning
    assert len({h.preprocessing for h in teacher.hypotheses}) == len(teacher.hypotheses) > 1


def test_statement_no_better_than_guessing_is_refused_with_what_suits_the_images(tmp_path: Path) -> None:
    hopeless = StatedPreprocessing(channels="RGB", scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(EngineError, match="Under the stated preprocessing") as caught:
        take_in(tmp_path, teacher_bytes(), EVENLY, preprocessing=hopeless, class_names=("amber", "blue", "green"))
    assert caught.value.code == "TEACHER_CONVENTION_UNKNOWN"
    assert "0.485" in caught.value.details["better"] or "pixel" in caught.value.details["better"]


def test_refused_image_is_named(tmp_path: Path) -> None:
    data = b"GIF89a not for us"
    with tarfile.open(tmp_path / "gif.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("amber/odd.gif")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
    (tmp_path / "teacher.onnx").write_bytes(teacher_bytes())
    inputs = IntakeInputs(
        teacher=file_of(tmp_path / "teacher.onnx"), images=LabelledImages(tar=file_of(tmp_path / "gif.tar"))
    )
    with pytest.raises(EngineError, match=r"'amber/odd\.gif' is not taken") as caught:
        intake.run(inputs, tmp_path, SilentProgress())
    assert (caught.value.code, caught.value.details["key"]) == ("IMAGE_REJECTED", "amber/odd.gif")


def test_scalar_input_is_set_to_what_suits_the_images(tmp_path: Path) -> None:
    def gated(model: Any) -> None:
        """Scores are multiplied by `keep`; at 0 nothing is left of them."""
        model.graph.input.append(helper.make_tensor_value_info("keep", TensorProto.FLOAT, [1]))
        model.graph.node.append(helper.make_node("Mul", ["y", "keep"], ["z"]))
        model.graph.output[0].name = "z"

    teacher, out, _ = take_in(tmp_path, teacher_bytes(edit=gated), EVENLY)
    assert teacher.scalar_inputs == {"keep": 1.0}
    assert any("'keep' = 1" in text for text in teacher.warnings)
    assert [item.name for item in onnx.load(out / "canonical.onnx").graph.input] == ["input"]


def test_training_flag_takes_the_value_under_which_the_teacher_is_right(tmp_path: Path) -> None:
    def inverted(model: Any) -> None:
        """The flag must be true: otherwise the scores change their sign."""
        model.graph.input.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
        model.graph.node.append(helper.make_node("Neg", ["y"], ["minus"]))
        model.graph.node.append(helper.make_node("Where", ["flag", "y", "minus"], ["z"]))
        model.graph.output[0].name = "z"

    teacher, _, _ = take_in(tmp_path, teacher_bytes(edit=inverted), EVENLY)
    assert teacher.scalar_inputs == {"flag": 1.0}
    assert teacher.accuracy == 1.0


def test_double_precision_teacher_is_fed_in_its_type(tmp_path: Path) -> None:
    def wrapped(model: Any) -> None:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
        model.graph.input[0].name = "wide"
        model.graph.node.insert(0, helper.make_node("Cast", ["wide"], ["x"], to=TensorProto.FLOAT))

    teacher, _, _ = take_in(tmp_path, teacher_bytes(edit=wrapped), EVENLY)
    assert (teacher.preprocessing.dtype, teacher.accuracy) == ("float64", 1.0)


def test_one_tensor_a_class_is_taken_for_scores(tmp_path: Path) -> None:
    def columns(model: Any) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "row"))
        model.graph.node.append(helper.make_node("Split", ["y"], ["c0", "c1", "c2"], axis=1))
        model.graph.ClearField("output")
        for index in range(3):
            model.graph.node.append(helper.make_node("Reshape", [f"c{index}", "row"], [f"score{index}"]))
            model.graph.output.append(helper.make_tensor_value_info(f"score{index}", TensorProto.FLOAT, [None]))

    teacher, _, _ = take_in(tmp_path, teacher_bytes(edit=columns), EVENLY)
    assert (teacher.classes, teacher.accuracy) == (3, 1.0)
    assert teacher.class_order == {"amber": 0, "blue": 1, "green": 2}


def test_poor_teacher_is_taken_with_a_warning(tmp_path: Path) -> None:
    # Two thirds of the images have a label whose colour is another class's.
    counts = {"amber": 20, "blue": 20, "green": 20, "u": 40, "v": 40, "w": 40}
    names = ("amber", "blue", "green", "u", "v", "w")

    def six_classes(model: Any) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 0, 3]), "pads"))
        model.graph.initializer.append(numpy_helper.from_array(np.float32(-99), "low"))
        model.graph.node.append(helper.make_node("Pad", ["y", "pads", "low"], ["z"]))
        model.graph.output[0].name = "z"
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 6

    teacher, _, _ = take_in(tmp_path, teacher_bytes(edit=six_classes), counts, class_names=names)
    (warning,) = [text for text in teacher.warnings if "is right on only" in text]
    assert f"{teacher.accuracy:.1%}" in warning


@pytest.mark.parametrize(("counts", "code"), [({}, "IMAGES_MISSING"), ({"blue": 9}, "IMAGES_ONE_CLASS")])
def test_too_few_classes_are_refused(tmp_path: Path, counts: dict[str, int], code: str) -> None:
    assert refusal(tmp_path, teacher_bytes(), counts) == code


def test_more_labels_than_outputs_are_unmappable(tmp_path: Path) -> None:
    assert refusal(tmp_path, teacher_bytes(), dict.fromkeys("abcd", 5)) == "LABELS_UNMAPPABLE"


def test_images_of_which_none_can_be_held_out_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, teacher_bytes(), dict.fromkeys(TINTS, 1)) == "IMAGES_MISSING"


def test_small_and_missing_classes_are_warnings(tmp_path: Path) -> None:
    names = ("amber", "blue", "green")
    teacher, _, _ = take_in(tmp_path, teacher_bytes(), {"amber": 20, "blue": 4}, class_names=names)
    assert any("blue (4)" in text for text in teacher.warnings)
    assert any(text.startswith("1 of the teacher's 3 classes") for text in teacher.warnings)


def test_teachers_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a", b"not a model", EVENLY) == "MODEL_MALFORMED"
    assert refusal(tmp_path / "b", teacher_bytes(gain=0.0), EVENLY) == "TEACHER_IGNORES_IMAGE"
    assert refusal(tmp_path / "c", teacher_bytes(bias=float("nan")), EVENLY) == "MODEL_NONFINITE"
    shuffled = {f"{name}{i}": 12 for i, name in enumerate("zyx")}
    wrong = teacher_bytes(gain=1e-3, bias=1.0)
    stated = ("z0", "y1", "x2")
    # Labels whose colours contradict the stated names: blue is called amber and so on.
    assert (
        refusal(tmp_path / "d", wrong, shuffled, class_names=(stated[1], stated[2], stated[0]))
        == "TEACHER_CONVENTION_UNKNOWN"
    )


def test_input_of_another_rank_is_no_image(tmp_path: Path) -> None:
    def flatten_twice(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim.add(dim_value=2)

    assert refusal(tmp_path, teacher_bytes(edit=flatten_twice), EVENLY) == "TEACHER_NOT_A_CLASSIFIER"


def shared_images(shared: Path, path: Path) -> File:
    wanted = set((shared / "data" / "labelled-20.txt").read_text().split())
    with (
        tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar,
        tarfile.open(shared / "data" / "cifar10-train.tar.gz") as source,
    ):
        for member in source:
            name = "/".join(member.name.split("/")[-2:])
            if name in wanted:
                kept = tarfile.TarInfo(name)
                kept.size = member.size
                tar.addfile(kept, source.extractfile(member))
    return file_of(path)


@pytest.mark.slow
def test_cifar_teachers_of_the_index_are_read_as_documented(shared: Path, tmp_path: Path) -> None:
    images = LabelledImages(tar=shared_images(shared, tmp_path / "images.tar"))
    folder = shared / "teachers"
    for entry in json.loads((folder / "index.json").read_text())["models"]:
        if entry["dataset"] != "cifar10-jpeg":
            continue
        inputs = IntakeInputs(
            teacher=file_of(folder / entry["file"]),
            images=images,
            external_data={e["file"]: file_of(folder / e["file"]) for e in entry["extra_files"]},
            threads=2,
        )
        out = tmp_path / entry["file"]
        out.mkdir()
        teacher = intake.run(inputs, out, SilentProgress())
        assert (teacher.preprocessing.layout, teacher.preprocessing.channels) == (
            entry["layout"],
            entry["colour_order"],
        ), entry["file"]
        assert min(teacher.class_order.values()) == entry["label_offset"], entry["file"]
        documented = [h for h in teacher.hypotheses if is_documented(h.preprocessing, entry["scaling"])]
        assert documented[0].agreement >= 0.93, entry["file"]


def is_documented(found: Any, scaling: Any) -> bool:
    """Whether two conventions send black and white to the same values."""
    divisor, mean, std = (np.asarray(scaling[key], float) for key in ("div", "mean", "std"))
    ours = [(p * found.scale - np.asarray(found.mean)) / np.asarray(found.std) for p in (0, 255)]
    theirs = [(p / divisor - mean) / std for p in (0, 255)]
    return bool(np.allclose(ours, theirs, rtol=1e-2, atol=1e-2))
