"""The teacher on pool and labelled images: views, resuming, repeatability."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image

from pu_engine import scoring
from pu_engine.errors import EngineError
from pu_engine.imaging import images, labelled
from pu_engine.jsonform import to_json
from pu_engine.pools.pool import open_pool
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest
from pu_engine.scores import scorer
from pu_engine.scores.score_types import Scores, ScoringInputs
from pu_engine.teacher import taps
from pu_engine.types import File, Folder, LabelledEntry, LabelledImages, Tap

Pack = Callable[[Path, Mapping[str, bytes]], File]
MakeJpeg = Callable[..., bytes]
SIDE, CLASSES, POOL_IMAGES, LABELLED_IMAGES = 8, 3, 12, 6


class CountingProgress(SilentProgress):
    """Keeps what a stage reported."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int, str]] = []

    def update(self, done: int, total: int, unit: str, metrics: Mapping[str, float] | None = None) -> None:
        self.seen.append((done, total, unit))


@pytest.fixture
def inputs(
    tmp_path: Path,
    make_pool: Callable[..., Folder],
    make_intake: Callable[..., Folder],
    make_jpeg: MakeJpeg,
    pack: Pack,
) -> ScoringInputs:
    """Twelve pool images in three shards and six labelled JPEGs of quality 60."""
    pool = make_pool(tmp_path, {f"{i:02d}.jpg": make_jpeg(i) for i in range(POOL_IMAGES)})
    members = {f"{'abc'[i % 3]}/{i}.jpg": make_jpeg(100 + i, quality=60) for i in range(LABELLED_IMAGES)}
    labelled = pack(tmp_path / "labelled.tar", members)
    return ScoringInputs(intake=make_intake(tmp_path / "intake"), pool=pool, images=LabelledImages(tar=labelled))


@pytest.fixture
def make_files(tmp_path: Path, make_jpeg: MakeJpeg, pack: Pack) -> Callable[..., LabelledImages]:
    """Labelled JPEGs by their keys and what `make_jpeg` takes."""

    def make(settings: Mapping[str, Mapping[str, Any]]) -> LabelledImages:
        return LabelledImages(tar=pack(tmp_path / "made.tar", {key: make_jpeg(**s) for key, s in settings.items()}))

    return make


def scored(inputs: ScoringInputs, out: Path, progress: SilentProgress | None = None) -> Scores:
    out.mkdir(exist_ok=True)
    return scoring.run(inputs, out, progress or SilentProgress())


def digest(out: Path) -> str:
    value: str = build_manifest(out, None, {})["digest"]
    return value


def teacher_outputs(
    inputs: ScoringInputs, pixels: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits and tap of [N, 8, 8, 3] pixels, with the preprocessing written out."""
    session = ort.InferenceSession(Path(inputs.intake.path) / "tapped.onnx", providers=["CPUExecutionProvider"])
    values = ((pixels / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    logits, tap = session.run(["logits", "tap_0"], {"input": values})
    return logits, tap


def pool_pixels(inputs: ScoringInputs) -> NDArray[np.uint8]:
    data = [data for _, data in open_pool(inputs.pool).read(range(POOL_IMAGES))]
    return np.stack([images.decode_resized(d, SIDE, SIDE, 3) for d in data])


def labelled_pixels(inputs: ScoringInputs) -> NDArray[np.uint8]:
    return np.stack([images.decode_resized(i.data, SIDE, SIDE, 3) for i in labelled.read(inputs.images)])


def all_rows(out: Path, kind: str) -> NDArray[np.float32]:
    return np.concatenate([np.load(out / f"shard-{i:05d}.{kind}.npy") for i in range(3)])


def test_files_have_the_promised_shapes(tmp_path: Path, inputs: ScoringInputs) -> None:
    result = scored(inputs, tmp_path / "out")
    shapes = {p.name: (np.load(p).shape, np.load(p).dtype.name) for p in (tmp_path / "out").glob("*.npy")}
    expected = {}
    for name, rows in [("labelled", 6), ("shard-00000", 5), ("shard-00001", 5), ("shard-00002", 2)]:
        expected[f"{name}.logits.npy"] = ((rows, 2, CLASSES), "float32")
        expected[f"{name}.features.npy"] = ((rows, 2, 4), "float16")
    assert shapes == expected
    assert (result.images, result.labelled, result.classes) == (12, 6, 3)
    assert result.views == ("clean", "matched")
    assert (result.matched_quality, result.matched_chroma) == (60, "4:2:0")
    assert result.images_per_second > 0


def test_logits_are_the_teachers_of_image_and_mirror(tmp_path: Path, inputs: ScoringInputs) -> None:
    scored(inputs, tmp_path / "out")
    pixels = pool_pixels(inputs)
    found = all_rows(tmp_path / "out", "logits")
    np.testing.assert_allclose(found[:, 0], teacher_outputs(inputs, pixels)[0], atol=1e-4)
    np.testing.assert_allclose(found[:, 1], teacher_outputs(inputs, pixels[:, :, ::-1])[0], atol=1e-4)
    assert np.abs(found[:, 0] - found[:, 1]).max() > 0.01


def test_clean_features_are_the_mean_over_image_and_mirror(tmp_path: Path, inputs: ScoringInputs) -> None:
    scored(inputs, tmp_path / "out")
    pixels = pool_pixels(inputs)
    mean = (teacher_outputs(inputs, pixels)[1] + teacher_outputs(inputs, pixels[:, :, ::-1])[1]) / 2
    np.testing.assert_allclose(all_rows(tmp_path / "out", "features")[:, 0], mean, rtol=1e-3, atol=1e-3)


def test_matched_view_is_the_image_through_jpeg(tmp_path: Path, inputs: ScoringInputs) -> None:
    scored(inputs, tmp_path / "out")
    matched = np.stack([images.reencode(image, 60, "4:2:0") for image in pool_pixels(inputs)])
    found = all_rows(tmp_path / "out", "features")
    np.testing.assert_allclose(found[:, 1], teacher_outputs(inputs, matched)[1], rtol=1e-3, atol=1e-3)


def test_labelled_images_show_the_matched_view_as_they_are(tmp_path: Path, inputs: ScoringInputs) -> None:
    scored(inputs, tmp_path / "out")
    pixels = labelled_pixels(inputs)
    features = np.load(tmp_path / "out" / "labelled.features.npy")
    np.testing.assert_allclose(features[:, 1], teacher_outputs(inputs, pixels)[1], rtol=1e-3, atol=1e-3)


def test_spreads_follow_the_taps_in_the_features(inputs: ScoringInputs) -> None:
    import onnx

    path = Path(inputs.intake.path) / "tapped.onnx"
    opened = scorer.open_scorer(inputs.intake, "cpu", None)
    tap = Tap(name="tap_0", source="r:NCHW", width=4, spread="tap_0_spread")
    model = onnx.load(path)
    del model.graph.output[1:]
    model.graph.node[-2].output[0] = model.graph.node[-1].input[0] = "flat"
    onnx.save(taps.tapped(model, [tap]), path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    spread = replace(opened, teacher=replace(opened.teacher, taps=(tap,)), session=session)
    pixels = pool_pixels(inputs)
    before, after = (s.outputs(pixels, labelled=False)[1] for s in (opened, spread))
    assert (opened.width, spread.width, after.shape) == (4, 8, (12, 1, 8))
    np.testing.assert_allclose(after[..., :4], before, rtol=1e-3)
    assert (after[..., 4:] > 0).all()


def test_png_labelled_images_need_no_matched_view(tmp_path: Path, inputs: ScoringInputs, pack: Pack) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 90)).save(buffer, "PNG")
    tar = pack(tmp_path / "png.tar", {"a/1.png": buffer.getvalue(), "a/2.png": buffer.getvalue()})
    result = scored(replace(inputs, images=LabelledImages(tar=tar)), tmp_path / "out")
    assert (result.views, result.matched_quality, result.matched_chroma) == (("clean",), None, None)
    assert np.load(tmp_path / "out" / "shard-00000.features.npy").shape == (5, 1, 4)


@pytest.mark.parametrize(("side", "views"), [(16, ["clean", "matched"]), (18, ["clean"])])
def test_photographs_shrunk_more_than_twofold_have_no_matched_view(
    tmp_path: Path, inputs: ScoringInputs, make_files: Callable[..., LabelledImages], side: int, views: list[str]
) -> None:
    images = make_files({f"a/{i}.jpg": {"seed": i, "height": side, "width": 10} for i in range(3)})
    result = scored(replace(inputs, images=images), tmp_path / "out")
    assert list(result.views) == views
    assert (result.matched_quality is None) == (len(views) == 1)


def test_the_median_side_decides() -> None:
    sides = [scoring.LabelledJpeg(quality=80, chroma="4:2:0", side=side) for side in (30, 64, 4000)]
    assert scoring.usual_jpeg(sides, 3, 32) == scorer.MatchedJpeg(quality=80, chroma="4:2:0")
    assert scoring.usual_jpeg(sides, 3, 31) is None
    assert scoring.usual_jpeg(sides, 6, 32) is None


def test_held_out_images_do_not_shape_the_matched_view(
    tmp_path: Path, make_intake: Callable[..., Folder], make_files: Callable[..., LabelledImages]
) -> None:
    settings = {"a/0.jpg": (50, "420"), "a/1.jpg": (90, "444"), "a/2.jpg": (91, "444")}
    entries = [
        LabelledEntry(key=key, label="a", index=0, sha256="0" * 64, held_out=key != "a/0.jpg") for key in settings
    ]
    sources = make_files({key: {"seed": 1, "quality": q, "chroma": c} for key, (q, c) in settings.items()})
    count, matched = scoring.survey(sources, make_intake(tmp_path / "intake", entries))
    assert count == 3
    assert matched == scorer.MatchedJpeg(quality=50, chroma="4:2:0")


def test_survey_takes_the_median_quality_and_commonest_chroma(
    tmp_path: Path, make_intake: Callable[..., Folder], pack: Pack, make_jpeg: MakeJpeg
) -> None:
    settings = [(50, "444"), (70, "420"), (90, "420")]
    members = {f"a/{i}.jpg": make_jpeg(i, quality=q, chroma=c) for i, (q, c) in enumerate(settings)}
    count, matched = scoring.survey(
        LabelledImages(tar=pack(tmp_path / "s.tar", members)), make_intake(tmp_path / "intake")
    )
    assert count == 3
    assert matched == scorer.MatchedJpeg(quality=70, chroma="4:2:0")


def test_damaged_labelled_image_is_named(
    tmp_path: Path, make_intake: Callable[..., Folder], pack: Pack, make_jpeg: MakeJpeg
) -> None:
    tar = pack(tmp_path / "s.tar", {"a/1.jpg": make_jpeg(1), "b/cut.jpg": make_jpeg(2)[:-60]})
    with pytest.raises(EngineError, match="'b/cut\\.jpg' is not taken") as caught:
        scoring.survey(LabelledImages(tar=tar), make_intake(tmp_path / "intake"))
    assert (caught.value.code, caught.value.details["key"]) == ("IMAGE_REJECTED", "b/cut.jpg")


def test_bytes_do_not_depend_on_the_workers(tmp_path: Path, inputs: ScoringInputs) -> None:
    scored(inputs, tmp_path / "a")
    scored(replace(inputs, threads=4), tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_fixed_batch_is_padded(tmp_path: Path, inputs: ScoringInputs, make_intake: Callable[..., Folder]) -> None:
    scored(inputs, tmp_path / "a")
    scored(replace(inputs, intake=make_intake(tmp_path / "fixed", batch=4)), tmp_path / "b")
    np.testing.assert_allclose(all_rows(tmp_path / "a", "logits"), all_rows(tmp_path / "b", "logits"), atol=1e-5)
    assert np.load(tmp_path / "b" / "labelled.logits.npy").shape == (6, 2, CLASSES)


def test_whole_shards_are_not_scored_again(tmp_path: Path, inputs: ScoringInputs) -> None:
    out = tmp_path / "out"
    scored(inputs, out)
    before = digest(out)
    kept = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    for kind in ("logits", "features"):
        (out / f"shard-00002.{kind}.npy").unlink()
    (out / ".shard-00002.logits.npy.partial").write_bytes(b"cut")
    progress = CountingProgress()
    scored(inputs, out, progress)
    assert digest(out) == before
    again = {p.name for p in out.iterdir() if kept.get(p.name) != p.stat().st_mtime_ns}
    assert again == {"shard-00002.logits.npy", "shard-00002.features.npy"}
    assert progress.seen == [(18, 18, "images"), (18, 18, "images")]


def test_cut_file_is_scored_again(tmp_path: Path, inputs: ScoringInputs) -> None:
    out = tmp_path / "out"
    scored(inputs, out)
    before = digest(out)
    path = out / "shard-00001.features.npy"
    path.write_bytes(path.read_bytes()[:-1])
    scored(inputs, out)
    assert digest(out) == before


def test_finished_scores_say_no_speed(tmp_path: Path, inputs: ScoringInputs) -> None:
    scored(inputs, tmp_path / "out")
    assert scored(inputs, tmp_path / "out").images_per_second == 0.0


def test_progress_counts_every_image(tmp_path: Path, inputs: ScoringInputs) -> None:
    progress = CountingProgress()
    scored(inputs, tmp_path / "out", progress)
    assert [done for done, _, _ in progress.seen] == [6, 11, 16, 18, 18]
    assert {(total, unit) for _, total, unit in progress.seen} == {(18, "images")}


def test_nonfinite_logits_are_refused(tmp_path: Path, inputs: ScoringInputs) -> None:
    import onnx
    from onnx import numpy_helper

    path = Path(inputs.intake.path) / "tapped.onnx"
    model = onnx.load(path)
    bias = next(i for i in model.graph.initializer if i.name == "b2")
    bias.CopyFrom(numpy_helper.from_array(np.array([0, np.nan, 0], np.float32), "b2"))
    onnx.save(model, path)
    with pytest.raises(EngineError) as caught:
        scored(inputs, tmp_path / "out")
    assert caught.value.code == "MODEL_NONFINITE"
    assert not (tmp_path / "out" / "labelled.logits.npy").exists()


@pytest.mark.parametrize(("side", "batch"), [(8, 256), (32, 64), (64, 16), (224, 4)])
def test_batch_follows_the_image_size(inputs: ScoringInputs, side: int, batch: int) -> None:
    opened = scorer.open_scorer(inputs.intake, "cpu", None)
    preprocessing = replace(opened.teacher.preprocessing, height=side, width=side)
    assert replace(opened, teacher=replace(opened.teacher, preprocessing=preprocessing)).batch == batch


def test_batches_end_at_their_count_or_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_BYTES", 10)
    sizes = [1, 1, 1, 1, 6, 6, 30, 2]
    found = [[len(data) for data in batch] for batch in scoring.batches((b"x" * n for n in sizes), 3)]
    assert found == [[1, 1, 1], [1, 6], [6], [30], [2]]
    assert list(scoring.batches([], 3)) == []


def test_large_features_are_clipped_not_infinite(inputs: ScoringInputs) -> None:
    import onnx
    from onnx import numpy_helper

    path = Path(inputs.intake.path) / "tapped.onnx"
    model = onnx.load(path)
    weight = next(i for i in model.graph.initializer if i.name == "w1")
    weight.CopyFrom(numpy_helper.from_array(np.full((4, 3, 3, 3), 1e5, np.float32), "w1"))
    onnx.save(model, path)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 255, 255)).save(buffer, "PNG")
    _, features = scorer.open_scorer(inputs.intake, "cpu", None).score([buffer.getvalue()], labelled=False)
    assert features.max() == np.finfo(np.float16).max


def test_killed_process_picks_up_where_it_was(
    tmp_path: Path, inputs: ScoringInputs, make_pool: Callable[..., Folder], make_jpeg: MakeJpeg
) -> None:
    """SIGKILL in the middle; the second run keeps what was whole and ends with the same digest."""
    (tmp_path / "large").mkdir()
    members = {f"{i:04d}.jpg": make_jpeg(i % 20, height=200, width=200) for i in range(300)}
    inputs = replace(inputs, pool=make_pool(tmp_path / "large", members, shard_images=20))
    scored(inputs, tmp_path / "whole")
    workdir = tmp_path / "work"
    workdir.mkdir()
    (workdir / "inputs.json").write_text(json.dumps(to_json(inputs)))
    command = [sys.executable, "-I", "-m", "pu_engine.stage", "scoring", str(workdir)]
    partial = workdir / "out.partial"
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (partial / "shard-00001.features.npy").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = {p.name: p.stat().st_mtime_ns for p in partial.iterdir() if not p.name.startswith(".")}
    assert len(kept) < 32
    assert subprocess.run(command, check=False).returncode == 0
    assert digest(workdir / "out") == digest(tmp_path / "whole")
    whole = [n for n in kept if n.startswith(("labelled", "shard-00000"))]
    assert all((workdir / "out" / name).stat().st_mtime_ns == kept[name] for name in whole)
