"""The plan: the rule for picks, and estimates that follow from timed samples."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pu_engine import ingest, plan
from pu_engine.errors import EngineError
from pu_engine.jsonform import from_json, to_json
from pu_engine.planning import plan_forecast, plan_samples
from pu_engine.planning.plan_types import Plan
from pu_engine.pools.pool import open_pool, pool_folder
from pu_engine.pools.pool_types import IngestInputs
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest, file_sha256
from pu_engine.scores.scorer import open_scorer
from pu_engine.training.distill_types import DistillationOptions
from pu_engine.types import (
    File,
    Folder,
    LabelledEntry,
    LabelledFile,
    LabelledImages,
    PlanInputs,
    Preprocessing,
    SelectionOptions,
    StudentOptions,
    Tap,
    Teacher,
)
from tests.unit.conftest import FACTS

POOL_IMAGES, SIDE, CLASSES = 20, 8, 3
PIXELS = Preprocessing(
    layout="NCHW", channels="GRAY", scale=1 / 255, mean=(0.0,), std=(1.0,), dtype="float32", height=SIDE, width=SIDE
)
TEACHER = Teacher(
    preprocessing=PIXELS, output="logits", batch=None, classes=CLASSES, class_order={"0": 0, "1": 1, "2": 2},
    class_names=("0", "1", "2"), taps=(Tap(name="tap0", source="flat", width=SIDE * SIDE),), accuracy=1.0,
    accuracy_low=0.9, accuracy_high=1.0, images=6, hypotheses=(), parameters=192, macs=192, opset=20, producer="test",
    facts=FACTS, teacher_sha256="0" * 64, teacher_bytes=1000, display_name="linear.onnx",
)  # fmt: skip


def png(generator: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(generator.integers(0, 255, (SIDE, SIDE), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def linear_teacher() -> onnx.ModelProto:
    weights = np.random.default_rng(0).normal(size=(SIDE * SIDE, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["tap0"]), helper.make_node("MatMul", ["tap0", "w"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES]),
            helper.make_tensor_value_info("tap0", TensorProto.FLOAT, ["batch", SIDE * SIDE]),
        ],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> PlanInputs:
    root, generator = tmp_path_factory.mktemp("plan"), np.random.default_rng(0)
    intake, pool = root / "intake", root / "pool"
    intake.mkdir()
    pool.mkdir()
    entries = [
        LabelledEntry(key=str(i), label=str(i % CLASSES), index=i % CLASSES, held_out=i == 5, sha256="0" * 64)
        for i in range(6)
    ]
    (intake / "labelled.json").write_text(json.dumps(to_json(entries)))
    onnx.save(linear_teacher(), intake / "tapped.onnx")
    manifest = build_manifest(intake, TEACHER, {"seconds": 2.5, "peak_memory_bytes": 10**8})
    (intake / "manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(root / "pool.tar", "w") as tar:
        for number in range(POOL_IMAGES):
            data = png(generator)
            entry = tarfile.TarInfo(f"{number}.png")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    tar_file = File(path=str(root / "pool.tar"), sha256=file_sha256(root / "pool.tar"))
    ingest.run(IngestInputs(name="noise", tars=(tar_file,)), pool, SilentProgress())
    files = []
    for number in range(6):
        path = root / f"{number}.png"
        path.write_bytes(png(generator))
        image = File(path=str(path), sha256=file_sha256(path))
        files.append(LabelledFile(label=str(number % CLASSES), image=image))
    return PlanInputs(
        intake=Folder(path=str(intake), sha256=manifest["digest"]),
        pool=pool_folder(pool),
        images=LabelledImages(files=tuple(files)),
        student=StudentOptions(name="cifar_resnet8"),
        distillation=DistillationOptions(steps=200, batch_size=8),
    )


@pytest.fixture(scope="module")
def planned(inputs: PlanInputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    out = tmp_path_factory.mktemp("out")
    return plan.run(inputs, out, SilentProgress()), out


def test_plan_lists_the_stages_of_a_compression_in_order(planned: tuple[Plan, Path]) -> None:
    assert [s.stage for s in planned[0].stages] == [
        "intake", "scoring", "selection", "gathering", "distillation", "export", "verification", "bundling", "report"
    ]  # fmt: skip


def test_plan_file_is_the_result(planned: tuple[Plan, Path]) -> None:
    made, out = planned
    assert from_json(Plan, json.loads((out / "plan.json").read_text())) == made
    assert [p.name for p in out.iterdir()] == ["plan.json"]


def test_every_figure_is_positive_and_says_what_it_rests_on(planned: tuple[Plan, Path]) -> None:
    for stage in planned[0].stages:
        assert stage.seconds > 0
        assert stage.memory_bytes > 0
        assert stage.how
    assert planned[0].seconds == pytest.approx(sum(s.seconds for s in planned[0].stages))


def test_intake_counts_what_it_took(planned: tuple[Plan, Path]) -> None:
    intake = planned[0].stages[0]
    assert (intake.seconds, intake.memory_bytes) == (2.5, 10**8)


def test_student_is_counted_at_the_teachers_size(planned: tuple[Plan, Path]) -> None:
    assert planned[0].student == "cifar_resnet8"
    assert 60_000 < planned[0].parameters < 80_000
    assert 500_000 < planned[0].macs < 1_000_000


def test_picks_follow_selections_own_rule(planned: tuple[Plan, Path]) -> None:
    # 200 steps of 8, a quarter labelled: 1,200 draws; at 40 passes more than the pool's 20 images.
    assert planned[0].picked == POOL_IMAGES


def test_forecast_is_what_selection_would_pick(planned: tuple[Plan, Path]) -> None:
    found = planned[0].selection
    assert (found.sample, found.labelled, found.picked) == (POOL_IMAGES, 5, POOL_IMAGES)
    assert sum(found.class_available) == POOL_IMAGES
    assert sum(found.class_counts) <= POOL_IMAGES
    assert found.score in ("pu", "content")
    assert found.why


def test_forecast_of_a_named_count_is_scaled_to_the_pool(inputs: PlanInputs, tmp_path: Path) -> None:
    scorer = open_scorer(inputs.intake, "cpu", None)
    asked = replace(inputs, selection=SelectionOptions(score="energy", rule="top", count=8))
    timed = plan_samples.Timed(seconds_each=4.0, peak_bytes=1, sample=1)  # too slow for all
    found = plan_forecast.forecast_picks(
        asked, scorer, open_pool(inputs.pool), tmp_path / "s", scoring=timed, picked=8, draws=100
    )
    assert (found.score, found.picked, sum(found.class_counts)) == ("energy", 8, 8)
    assert (found.prior, found.expected) == (None, None)
    assert not (tmp_path / "s").exists()


def test_a_plan_without_usable_labelled_images_is_refused(inputs: PlanInputs, tmp_path: Path) -> None:
    intake = tmp_path / "intake"
    shutil.copytree(inputs.intake.path, intake)
    (intake / "labelled.json").write_text("[]")
    with pytest.raises(EngineError) as raised:
        plan.run(replace(inputs, intake=replace(inputs.intake, path=str(intake))), tmp_path / "out", SilentProgress())
    assert raised.value.code == "IMAGES_MISSING"


def test_twice_the_steps_take_twice_the_distillation(inputs: PlanInputs) -> None:
    timed = plan_samples.Timed(seconds_each=0.5, peak_bytes=1, sample=8)
    student = plan_samples.TimedStudent(name="x", parameters=1, macs=1, step=timed)

    def seconds(steps: int) -> float:
        stages = plan.estimate_stages(
            inputs,
            steps=steps,
            pool_images=20,
            labelled=6,
            picked=10,
            passes=2,
            scoring=timed,
            decoding=timed,
            student=student,
        )
        return {s.stage: s.seconds for s in stages}["distillation"]

    assert (seconds(100), seconds(200)) == (50.0, 100.0)


@pytest.mark.parametrize(
    ("options", "picks"),
    [
        (SelectionOptions(), 80),
        (SelectionOptions(count=30), 30),
        (SelectionOptions(count=3000), 1000),
        (SelectionOptions(rule="threshold", threshold=0.75), 250),
        (SelectionOptions(rule="threshold", threshold=0.75, count=40), 40),
        (SelectionOptions(rule="top"), 80),
    ],
)
def test_expected_picks(options: SelectionOptions, picks: int) -> None:
    assert plan.expected_picks(options, 1000, 80) == picks


def test_selections_memory_does_not_grow_with_the_pools_features() -> None:
    small, large = (plan.selection_bytes(images, 1000, 1000) for images in (100_000, 1_000_000))
    assert large - small == 900_000 * plan.SELECTION_BYTES_AN_IMAGE
    assert large < 2**30
    assert plan.selection_bytes(1000, 100, 64) < 2**24


def test_other_efforts_are_set_beside_the_planned_one() -> None:
    found = {row.effort: row for row in plan.outlook(1500, 0.1)}
    assert set(found) == {"normal", "patient"}
    assert found["normal"].seconds == pytest.approx(600.0)
    assert found["normal"].points == pytest.approx(2 * plan.POINTS_A_DOUBLING)
    assert plan.outlook(6000, 0.1)[0].points < 0


def test_minutes_are_planned_as_the_steps_that_fit(inputs: PlanInputs, tmp_path: Path) -> None:
    made = plan.run(
        replace(inputs, distillation=DistillationOptions(minutes=0.05, batch_size=8)), tmp_path, SilentProgress()
    )
    assert made.steps >= 1
    assert "fit into 0.05 minutes" in made.budget
    distillation = {s.stage: s.seconds for s in made.stages}["distillation"]
    assert distillation <= 3.0 or made.steps == 1


def test_sample_keeps_every_worker_busy() -> None:
    assert plan_samples.sample_size(40_000, batch=64, threads=4) == 512
    assert plan_samples.sample_size(40_000, batch=4, threads=2) == 64
    assert plan_samples.sample_size(10, batch=64, threads=4) == 10


def test_sample_is_spread_over_the_pool(inputs: PlanInputs) -> None:
    pool = open_pool(inputs.pool)
    wanted = [data for _, data in pool.read([0, 19])]
    assert plan_samples.read_sample(pool, 2) == wanted


def test_step_clock_notes_each_step() -> None:
    clock = plan_samples.StepClock()
    clock.update(1, 2, "step")
    time.sleep(0.002)
    clock.update(2, 2, "step")
    assert clock.ends[1] - clock.ends[0] >= 0.002


def test_plan_refuses_what_the_stages_would_refuse(inputs: PlanInputs, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no_such") as unknown:
        plan.run(replace(inputs, student=StudentOptions(name="no_such")), tmp_path, SilentProgress())
    assert unknown.value.code == "STUDENT_UNKNOWN"
    wrong = replace(inputs, selection=SelectionOptions(rule="threshold"))
    with pytest.raises(EngineError, match="threshold") as invalid:
        plan.run(wrong, tmp_path, SilentProgress())
    assert invalid.value.code == "REQUEST_INVALID"


def test_plan_runs_over_a_killed_runs_leftovers(inputs: PlanInputs, tmp_path: Path) -> None:
    (tmp_path / plan.SCRATCH).mkdir()
    (tmp_path / plan.SCRATCH / "step-00000000.json").write_text("{")
    (tmp_path / "plan.json").write_text("half")
    made = plan.run(inputs, tmp_path, SilentProgress())
    assert json.loads((tmp_path / "plan.json").read_text()) == to_json(made)
