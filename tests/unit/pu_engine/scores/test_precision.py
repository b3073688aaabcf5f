"""int8 or fp32: the bars, the trial on real networks, and that a choice is made once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from pu_engine import scoring
from pu_engine.execution import execute
from pu_engine.jsonform import to_json
from pu_engine.pipeline import SCORING
from pu_engine.progress import SilentProgress
from pu_engine.results import load, read_manifest
from pu_engine.scores import int8_copy, precision
from pu_engine.scores.score_types import Int8Trial, Scores, ScoringInputs
from pu_engine.types import File, Folder, LabelledEntry, LabelledImages

Pack = Callable[[Path, Mapping[str, bytes]], File]
MakeJpeg = Callable[..., bytes]
POOL_IMAGES = 24
GOOD = Int8Trial(images=1024, speedup=2.0, agreement=0.97, jaccard=0.93)


@pytest.fixture(autouse=True)
def small_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool is large enough for a trial, and the trial has eight images."""
    monkeypatch.setattr(precision, "LEAST_POOL", POOL_IMAGES)
    monkeypatch.setattr(precision, "LEAST_SAMPLE", 8)


@pytest.fixture
def inputs(
    tmp_path: Path,
    make_pool: Callable[..., Folder],
    make_intake: Callable[..., Folder],
    make_jpeg: MakeJpeg,
    pack: Pack,
) -> ScoringInputs:
    """A pool in three shards, and six labelled images, one of them held out."""
    pool = make_pool(tmp_path, {f"{i:02d}.jpg": make_jpeg(i) for i in range(POOL_IMAGES)}, shard_images=10)
    keys = [f"{'abc'[i % 3]}/{i}.jpg" for i in range(6)]
    labelled = pack(tmp_path / "labelled.tar", {key: make_jpeg(100 + i) for i, key in enumerate(keys)})
    entries = [
        LabelledEntry(key=key, label=key[0], index="abc".index(key[0]), held_out=i == 5, sha256="0" * 64)
        for i, key in enumerate(keys)
    ]
    intake = make_intake(tmp_path / "intake", entries)
    return ScoringInputs(intake=intake, pool=pool, images=LabelledImages(tar=labelled))


@pytest.fixture
def easy_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of a thousand weights gains nothing from int8; the bars would never be met."""
    for name in ("LEAST_SPEEDUP", "LEAST_AGREEMENT", "LEAST_JACCARD"):
        monkeypatch.setattr(precision, name, 0.0)


def finished(inputs: ScoringInputs, workdir: Path) -> Path:
    return execute(SCORING, workdir, to_json(inputs), SilentProgress())


def result(out: Path) -> Scores:
    return load(Scores, out)


@pytest.mark.parametrize(
    ("change", "name", "why"),
    [
        ({}, "int8", "holds all bars on 1024 images"),
        ({"speedup": 1.49}, "fp32", "only 1.49 times as fast; 1.5 are asked"),
        ({"agreement": 0.949}, "fp32", "fp32's class for 94.9% of the images; 95% are asked"),
        ({"jaccard": 0.89}, "fp32", "a Jaccard index of 0.89; 0.90 is asked"),
    ],
)
def test_every_bar_must_hold(change: dict[str, float], name: str, why: str) -> None:
    chosen = precision.judge(replace(GOOD, **change))  # type: ignore[arg-type]
    assert chosen.name == name
    assert why in chosen.why


def test_small_pools_are_scored_in_fp32(tmp_path: Path, inputs: ScoringInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "LEAST_POOL", POOL_IMAGES + 1)
    found = result(finished(inputs, tmp_path / "work"))
    assert (found.precision, found.precision_why.trial) == ("fp32", None)
    assert found.precision_why.why == "the pool has 24 images; int8 is tried from 25 on"


def test_a_copy_that_misses_a_bar_is_not_used(
    tmp_path: Path, inputs: ScoringInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "LEAST_SPEEDUP", 1000.0)
    out = finished(inputs, tmp_path / "work")
    found = result(out)
    assert found.precision == "fp32"
    assert found.precision_why.trial is not None
    assert found.precision_why.trial.images == 8
    assert not (out / "int8.onnx").exists()
    plain = tmp_path / "plain"
    monkeypatch.setattr(precision, "LEAST_POOL", 100)
    finished(inputs, plain)
    np.testing.assert_array_equal(
        np.load(scoring.logits_path(out, "shard-00000")), np.load(scoring.logits_path(plain / "out", "shard-00000"))
    )


@pytest.mark.usefixtures("easy_bars")
def test_int8_scores_are_near_those_of_fp32(
    tmp_path: Path, inputs: ScoringInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = finished(inputs, tmp_path / "int8")
    assert result(out).precision == "int8"
    monkeypatch.setattr(precision, "LEAST_POOL", 100)
    plain = finished(inputs, tmp_path / "fp32")
    ours, theirs = (np.load(scoring.logits_path(f, "shard-00001")) for f in (out, plain))
    assert 0 < np.abs(ours - theirs).mean() < 0.05 * np.abs(theirs).mean()


@pytest.mark.usefixtures("easy_bars")
def test_a_rerun_keeps_the_choice(tmp_path: Path, inputs: ScoringInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial's figures would differ, and with them perhaps the choice."""
    out = tmp_path / "out"
    out.mkdir()
    first = scoring.run(inputs, out, SilentProgress())
    (out / "shard-00001.logits.npy").unlink()
    monkeypatch.setattr(precision, "LEAST_SPEEDUP", 1000.0)
    again = scoring.run(inputs, out, SilentProgress())
    assert (first.precision, again.precision) == ("int8", "int8")
    assert again.precision_why == first.precision_why


@pytest.mark.usefixtures("easy_bars")
def test_an_earlier_scorings_choice_and_copy_are_taken_over(
    tmp_path: Path, inputs: ScoringInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = finished(inputs, tmp_path / "first")
    monkeypatch.setattr(precision, "LEAST_SPEEDUP", 1000.0)
    second = finished(replace(inputs, kept=(str(first),)), tmp_path / "second")
    assert (result(second).precision, result(second).taken_over) == ("int8", POOL_IMAGES)
    assert (second / "int8.onnx").read_bytes() == (first / "int8.onnx").read_bytes()
    assert result(second).precision_why.why == "an earlier scoring of 3 of the 3 shards chose it"
    assert read_manifest(second)["digest"] == read_manifest(first)["digest"]


@pytest.mark.usefixtures("easy_bars")
def test_the_copy_is_the_same_every_time(tmp_path: Path, inputs: ScoringInputs) -> None:
    copies = [(finished(inputs, tmp_path / name) / "int8.onnx").read_bytes() for name in ("a", "b")]
    assert copies[0] == copies[1]
    kinds = {(i.name, i.data_type) for i in onnx.load_model_from_string(copies[0]).graph.initializer}
    assert any(kind == onnx.TensorProto.INT8 for _, kind in kinds)


@pytest.mark.usefixtures("easy_bars")
def test_held_out_images_calibrate_nothing(
    tmp_path: Path, inputs: ScoringInputs, pack: Pack, make_jpeg: MakeJpeg
) -> None:
    first = finished(inputs, tmp_path / "a")
    members = {f"{'abc'[i % 3]}/{i}.jpg": make_jpeg(900 if i == 5 else 100 + i) for i in range(6)}
    other = replace(inputs, images=LabelledImages(tar=pack(tmp_path / "other.tar", members)))
    second = finished(other, tmp_path / "b")
    assert (first / "int8.onnx").read_bytes() == (second / "int8.onnx").read_bytes()


def test_quantised_teachers_are_left_alone(tmp_path: Path) -> None:
    make = onnx.helper
    ends = [make.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in ("input", "logits")]
    nodes = [
        make.make_node("DynamicQuantizeLinear", ["input"], ["q", "s", "z"]),
        make.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"]),
    ]
    path = tmp_path / "m.onnx"
    onnx.save(make.make_model(make.make_graph(nodes, "g", ends[:1], ends[1:])), path)
    assert int8_copy.why_not(path) == "the teacher is quantised already"


def test_the_choice_is_written_before_the_first_scores(
    tmp_path: Path, inputs: ScoringInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Watching(SilentProgress):
        def update(self, done: int, total: int, unit: str, metrics: Mapping[str, float] | None = None) -> None:
            if unit == "images" and not seen:
                seen.append(json.loads((tmp_path / "precision.timing.json").read_text())["name"])

    scoring.run(inputs, tmp_path, Watching())
    assert len(seen) == 1


@pytest.mark.parametrize(("pool", "sample"), [(10, 8), (16_000, 800), (1_000_000, 1024)])
def test_the_sample_is_a_twentieth_within_bounds(pool: int, sample: int) -> None:
    assert precision.sample_size(pool) == sample
