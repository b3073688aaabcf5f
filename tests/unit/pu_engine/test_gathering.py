"""The frozen arrays that training reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pu_engine import gathering, scoring
from pu_engine.errors import EngineError
from pu_engine.imaging import images
from pu_engine.jsonform import to_json
from pu_engine.pools.pool import open_pool
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest
from pu_engine.scores import target_logits
from pu_engine.scores.score_types import ScoringInputs
from pu_engine.scores.scorer import open_scorer
from pu_engine.types import (
    File,
    Folder,
    GatheringInputs,
    LabelledEntry,
    LabelledImages,
    TrainingSet,
)

MakeJpeg = Callable[..., bytes]
POOL_IMAGES, LABELLED_IMAGES, SIDE, CLASSES = 300, 9, 8, 3
PICKED = (2, 3, 150, 299)


def write_selection(folder: Path, keys: tuple[str, ...], picked: tuple[int, ...]) -> Folder:
    folder.mkdir()
    rows = {"key": list(keys), "picked": [row in picked for row in range(len(keys))]}
    rows["weight"] = [float(row in picked) for row in range(len(keys))]
    pq.write_table(pa.table(rows), folder / "selection.parquet")
    return Folder(path=str(folder), sha256="0" * 64)


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory,
    make_pool: Callable[..., Folder],
    make_intake: Callable[..., Folder],
    make_jpeg: MakeJpeg,
    pack: Callable[[Path, Mapping[str, bytes]], File],
) -> GatheringInputs:
    """300 pool images in three shards, four of them picked; nine labelled images, three of them held out."""
    folder = tmp_path_factory.mktemp("gathering")
    pool = make_pool(folder, {f"{i:03d}.jpg": make_jpeg(i) for i in range(POOL_IMAGES)}, shard_images=100)
    labelled = {f"{'abc'[i % 3]}/{i}.jpg": make_jpeg(1000 + i) for i in range(LABELLED_IMAGES)}
    entries = [
        LabelledEntry(key=k, label=k[0], index="abc".index(k[0]), held_out=i >= 6, sha256=f"{i:064x}")
        for i, k in enumerate(labelled)
    ]
    sources = LabelledImages(tar=pack(folder / "labelled.tar", labelled))
    intake = make_intake(folder / "intake", entries)
    (folder / "scores").mkdir()
    result = scoring.run(ScoringInputs(intake=intake, pool=pool, images=sources), folder / "scores", SilentProgress())
    (folder / "scores" / "manifest.json").write_text(json.dumps({"result": to_json(result)}))
    return GatheringInputs(
        intake=intake,
        scoring=Folder(path=str(folder / "scores"), sha256="0" * 64),
        selection=write_selection(folder / "selection", open_pool(pool).keys, PICKED),
        pool=pool,
        images=sources,
        seed=5,
    )


def gathered(inputs: GatheringInputs, out: Path) -> TrainingSet:
    out.mkdir(exist_ok=True)
    return gathering.run(inputs, out, SilentProgress())


def test_files_have_the_promised_shapes(tmp_path: Path, inputs: GatheringInputs) -> None:
    result = gathered(inputs, tmp_path)
    assert result == TrainingSet(
        fit="stretch", size=8, channels=3, classes=3, labelled=6, picked=4, held_out=3, parity=256, parity_unpicked=256
    )
    for part, n in [("labelled", 6), ("picked", 4), ("held_out", 3), ("parity", 256)]:
        pixels, targets = np.load(tmp_path / f"{part}.images.npy"), np.load(tmp_path / f"{part}.targets.npy")
        assert (pixels.shape, pixels.dtype) == ((n, SIDE, SIDE, 3), np.uint8)
        assert (targets.shape, targets.dtype) == ((n, 2, CLASSES), np.float32)
    assert np.load(tmp_path / "picked.weights.npy").tolist() == [1.0, 1.0, 1.0, 1.0]
    assert len(list(tmp_path.iterdir())) == 12


def test_a_bank_holds_crops_and_mirrors_with_the_teachers_own_logits(tmp_path: Path, inputs: GatheringInputs) -> None:
    gathered(replace(inputs, targets="views", views=3), tmp_path)
    scorer = open_scorer(inputs.intake, "cpu", None)
    for part, n in [("labelled", 6), ("picked", 4)]:
        views = np.load(tmp_path / f"{part}.bank.images.npy")
        assert views.shape == (n, 3, SIDE, SIDE, 3)
        assert len({view.tobytes() for view in views[0]}) > 1
        logits = np.load(tmp_path / f"{part}.bank.targets.npy")
        np.testing.assert_allclose(logits[:, 1], scorer.logits(views[:, 1]), rtol=1e-5)


def test_a_weight_of_the_selection_is_how_often_an_image_is_drawn(tmp_path: Path, inputs: GatheringInputs) -> None:
    path = Path(inputs.selection.path) / "selection.parquet"
    table = pq.read_table(path)
    weights = np.where(table["picked"].to_numpy(), 0.5, 0.0)
    folder = tmp_path / "selection"
    folder.mkdir()
    pq.write_table(
        table.set_column(table.column_names.index("weight"), "weight", pa.array(weights)), folder / path.name
    )
    gathered(replace(inputs, selection=Folder(path=str(folder), sha256="")), tmp_path / "out")
    assert np.load(tmp_path / "out" / "picked.weights.npy").tolist() == [0.5] * 4


def test_picked_images_come_with_their_own_targets_and_keys(
    tmp_path: Path, inputs: GatheringInputs, make_jpeg: MakeJpeg
) -> None:
    gathered(inputs, tmp_path)
    expected = np.stack([images.decode_resized(make_jpeg(row), SIDE, SIDE, 3) for row in PICKED])
    logits = np.concatenate([np.load(Path(inputs.scoring.path) / f"shard-{i:05d}.logits.npy") for i in range(3)])
    np.testing.assert_array_equal(np.load(tmp_path / "picked.images.npy"), expected)
    np.testing.assert_array_equal(np.load(tmp_path / "picked.targets.npy"), logits[list(PICKED)])
    assert json.loads((tmp_path / "picked.keys.json").read_text()) == ["002", "003", "150", "299"]


def test_targets_are_the_same_in_chunks_of_any_size(
    tmp_path: Path, inputs: GatheringInputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    gathered(inputs, tmp_path / "whole")
    monkeypatch.setattr(target_logits, "CHUNK_ROWS", 2)
    gathered(inputs, tmp_path / "chunks")
    for part in ("labelled", "picked", "held_out", "parity"):
        written = [(tmp_path / name / f"{part}.targets.npy").read_bytes() for name in ("whole", "chunks")]
        assert written[0] == written[1]


def test_labelled_images_are_split_as_intake_said(tmp_path: Path, inputs: GatheringInputs, make_jpeg: MakeJpeg) -> None:
    gathered(inputs, tmp_path)
    logits = np.load(Path(inputs.scoring.path) / "labelled.logits.npy")
    for part, rows in [("labelled", range(6)), ("held_out", range(6, 9))]:
        expected = np.stack([images.decode_resized(make_jpeg(1000 + i), SIDE, SIDE, 3) for i in rows])
        np.testing.assert_array_equal(np.load(tmp_path / f"{part}.images.npy"), expected)
        np.testing.assert_array_equal(np.load(tmp_path / f"{part}.targets.npy"), logits[list(rows)])
        labels = np.load(tmp_path / f"{part}.labels.npy")
        assert labels.dtype == np.int64
        assert labels.tolist() == [i % 3 for i in rows]


def test_training_size_resizes_the_original_bytes(tmp_path: Path, inputs: GatheringInputs, make_jpeg: MakeJpeg) -> None:
    assert gathered(replace(inputs, size=20), tmp_path).size == 20
    expected = images.decode_resized(make_jpeg(2), 20, 20, 3)
    np.testing.assert_array_equal(np.load(tmp_path / "picked.images.npy")[0], expected)


def test_repeated_run_gives_the_same_bytes(tmp_path: Path, inputs: GatheringInputs) -> None:
    gathered(inputs, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "picked.images.npy").write_bytes(b"cut")
    (tmp_path / "b" / ".parity.images.npy.partial").write_bytes(b"cut")
    gathered(replace(inputs, threads=3), tmp_path / "b")
    digests = [build_manifest(tmp_path / name, None, {})["digest"] for name in "ab"]
    assert digests[0] == digests[1]


def test_parity_is_unpicked_and_drawn_by_seed() -> None:
    picked = np.arange(0, 1000, 2)
    first, same, other = (gathering.parity_rows(picked, 1000, seed) for seed in (1, 1, 2))
    assert len(first) == 256
    assert not set(first) & set(picked)
    assert first.tolist() == sorted(set(first))
    assert first.tolist() == same.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("picked", "pool", "expected"), [(100, 100, 100), (900, 1000, 256), (1000, 1000, 256), (0, 10, 10)]
)
def test_parity_is_filled_up_with_picked_images(picked: int, pool: int, expected: int) -> None:
    rows = gathering.parity_rows(np.arange(picked), pool, 0)
    assert len(rows) == len(set(rows)) == expected
    assert int((rows >= picked).sum()) == min(pool - picked, 256)


def test_parity_images_that_were_trained_on_are_counted(tmp_path: Path, inputs: GatheringInputs) -> None:
    selection = write_selection(tmp_path / "selection", open_pool(inputs.pool).keys, tuple(range(200)))
    result = gathered(replace(inputs, selection=selection), tmp_path / "out")
    assert (result.parity, result.parity_unpicked) == (256, 100)


def test_no_picks_leave_empty_arrays(tmp_path: Path, inputs: GatheringInputs) -> None:
    selection = write_selection(tmp_path / "selection", open_pool(inputs.pool).keys, ())
    assert gathered(replace(inputs, selection=selection), tmp_path / "out").picked == 0
    assert np.load(tmp_path / "out" / "picked.images.npy").shape == (0, SIDE, SIDE, 3)
    assert np.load(tmp_path / "out" / "picked.targets.npy").shape == (0, 2, CLASSES)


def test_selection_of_another_pool_is_refused(tmp_path: Path, inputs: GatheringInputs) -> None:
    selection = write_selection(tmp_path / "selection", ("x", "y"), (0,))
    with pytest.raises(EngineError, match="keys are not the pool's") as caught:
        gathered(replace(inputs, selection=selection), tmp_path / "out")
    assert caught.value.code == "STAGE_PROTOCOL"


def test_other_labelled_images_are_refused(
    tmp_path: Path, inputs: GatheringInputs, pack: Callable[[Path, Mapping[str, bytes]], File], make_jpeg: MakeJpeg
) -> None:
    tar = pack(tmp_path / "other.tar", {f"a/other{i}.jpg": make_jpeg(i) for i in range(LABELLED_IMAGES)})
    with pytest.raises(EngineError) as caught:
        gathered(replace(inputs, images=LabelledImages(tar=tar)), tmp_path / "out")
    assert caught.value.code == "STAGE_PROTOCOL"


def test_targets_after_int8_scores_are_the_teachers_own(tmp_path: Path, inputs: GatheringInputs) -> None:
    gathered(inputs, tmp_path / "fp32")
    scored = tmp_path / "scored"
    shutil.copytree(inputs.scoring.path, scored)
    for path in scored.glob("*.logits.npy"):
        np.save(path, np.load(path) + 1.0)  # what a student must never learn from
    manifest = json.loads((scored / "manifest.json").read_text())
    manifest["result"]["precision"] = "int8"
    (scored / "manifest.json").write_text(json.dumps(manifest))
    gathered(replace(inputs, scoring=replace(inputs.scoring, path=str(scored))), tmp_path / "int8")
    for part in ("labelled", "picked", "held_out", "parity"):
        ours, theirs = (np.load(tmp_path / name / f"{part}.targets.npy") for name in ("int8", "fp32"))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
