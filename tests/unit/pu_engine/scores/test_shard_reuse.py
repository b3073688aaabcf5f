"""Scores by shard across jobs: taken over where nothing differs, computed again where anything does."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pu_engine import scoring
from pu_engine.execution import execute
from pu_engine.jsonform import to_json
from pu_engine.pipeline import SCORING
from pu_engine.pools.pool import open_pool
from pu_engine.progress import SilentProgress
from pu_engine.results import load, read_manifest
from pu_engine.scores.score_types import Scores, ScoringInputs
from pu_engine.scores.scorer import MatchedJpeg, open_scorer
from pu_engine.scores.shard_reuse import read_earlier, shard_keys
from pu_engine.types import File, Folder, LabelledImages

Pack = Callable[[Path, Mapping[str, bytes]], File]
MakeJpeg = Callable[..., bytes]


@pytest.fixture
def inputs(
    tmp_path: Path,
    make_pool: Callable[..., Folder],
    make_intake: Callable[..., Folder],
    make_jpeg: MakeJpeg,
    pack: Pack,
) -> ScoringInputs:
    """Twelve pool images in three shards and six labelled JPEGs of quality 60."""
    pool = make_pool(tmp_path, {f"{i:02d}.jpg": make_jpeg(i) for i in range(12)})
    labelled = pack(
        tmp_path / "labelled.tar", {f"{'abc'[i % 3]}/{i}.jpg": make_jpeg(100 + i, quality=60) for i in range(6)}
    )
    return ScoringInputs(intake=make_intake(tmp_path / "intake"), pool=pool, images=LabelledImages(tar=labelled))


def finished(inputs: ScoringInputs, workdir: Path) -> Path:
    """A scoring as a stage runs it."""
    return execute(SCORING, workdir, to_json(inputs), SilentProgress())


def result(out: Path) -> Scores:
    return load(Scores, out)


def test_another_job_takes_over_every_shard(tmp_path: Path, inputs: ScoringInputs) -> None:
    first = finished(inputs, tmp_path / "first")
    second = finished(replace(inputs, kept=(str(first),)), tmp_path / "second")
    assert (result(first).taken_over, result(second).taken_over) == (0, 12)
    assert read_manifest(second)["digest"] == read_manifest(first)["digest"]


def test_a_copy_stands_on_its_own(tmp_path: Path, inputs: ScoringInputs) -> None:
    first = finished(inputs, tmp_path / "first")
    second = finished(replace(inputs, kept=(str(first),)), tmp_path / "second")
    name = "shard-00001.logits.npy"
    assert (first / name).stat().st_ino != (second / name).stat().st_ino


def test_an_appended_pool_scores_only_what_is_new(
    tmp_path: Path, inputs: ScoringInputs, make_pool: Callable[..., Folder], make_jpeg: MakeJpeg
) -> None:
    first = finished(inputs, tmp_path / "first")
    (tmp_path / "more").mkdir()
    # Twelve images fill two shards of five; the third differs.
    more = make_pool(tmp_path / "more", {f"{i:02d}.jpg": make_jpeg(i) for i in range(14)})
    second = finished(replace(inputs, pool=more, kept=(str(first),)), tmp_path / "second")
    fresh = finished(replace(inputs, pool=more), tmp_path / "fresh")
    assert result(second).taken_over == 10
    assert read_manifest(second)["digest"] == read_manifest(fresh)["digest"]


@pytest.mark.parametrize("file", ["shard-00001.logits.npy", "shard-00001.features.npy"])
def test_damaged_scores_are_computed_again(tmp_path: Path, inputs: ScoringInputs, file: str) -> None:
    first = finished(inputs, tmp_path / "first")
    whole = read_manifest(first)["digest"]
    data = bytearray((first / file).read_bytes())
    data[-1] ^= 1
    (first / file).write_bytes(data)
    second = finished(replace(inputs, kept=(str(first),)), tmp_path / "second")
    assert result(second).taken_over == 7
    assert read_manifest(second)["digest"] == whole


def test_a_scoring_removed_meanwhile_is_done_without(tmp_path: Path, inputs: ScoringInputs) -> None:
    first = finished(inputs, tmp_path / "first")
    (first / "shard-00000.features.npy").unlink()
    kept = (str(tmp_path / "gone"), str(first))
    assert result(finished(replace(inputs, kept=kept), tmp_path / "second")).taken_over == 7


def test_results_of_another_form_are_passed_over(tmp_path: Path, inputs: ScoringInputs) -> None:
    first = finished(inputs, tmp_path / "first")
    manifest = read_manifest(first)
    del manifest["result"]["shard_keys"]
    (first / "manifest.json").write_text(json.dumps(manifest))
    assert read_earlier([str(first)]) == ()


def test_keys_follow_what_the_scores_depend_on(tmp_path: Path, inputs: ScoringInputs) -> None:
    scorer = open_scorer(inputs.intake, "cpu", None)
    shards = open_pool(inputs.pool).pool.shards

    def keys(changed: object = scorer, teacher: str = "a", model: str = "a") -> tuple[str, ...]:
        return shard_keys(changed, shards, teacher=teacher, model=model)  # type: ignore[arg-type]

    brighter = replace(scorer.teacher.preprocessing, mean=(0.4, 0.4, 0.4))
    others = [
        keys(teacher="b"),
        keys(model="b"),
        keys(replace(scorer, matched=MatchedJpeg(quality=60, chroma="4:2:0"))),
        keys(replace(scorer, teacher=replace(scorer.teacher, preprocessing=brighter))),
        keys(replace(scorer, provider="cuda")),
    ]
    assert keys() == keys()
    assert len(set(keys())) == 3
    assert all(not set(keys()) & set(other) for other in others)


def test_a_shard_is_known_by_its_content_not_its_name(inputs: ScoringInputs) -> None:
    scorer = open_scorer(inputs.intake, "cpu", None)
    shard = open_pool(inputs.pool).pool.shards[0]
    pair = shard_keys(scorer, [shard, replace(shard, name="shard-00009")], teacher="a", model="a")
    assert pair[0] == pair[1]


def test_taken_over_rows_are_those_of_the_shard(tmp_path: Path, inputs: ScoringInputs) -> None:
    first = finished(inputs, tmp_path / "first")
    second = finished(replace(inputs, kept=(str(first),)), tmp_path / "second")
    for shard in result(first).shards:
        for path in (scoring.logits_path, scoring.features_path):
            np.testing.assert_array_equal(np.load(path(first, shard)), np.load(path(second, shard)))


def test_a_scoring_killed_while_it_takes_over_ends_alike(tmp_path: Path, inputs: ScoringInputs) -> None:
    """SIGKILL at its first taken shard; the second run keeps what was whole and ends with the same digest."""
    first = finished(inputs, tmp_path / "first")
    workdir = tmp_path / "second"
    workdir.mkdir()
    (workdir / "inputs.json").write_text(json.dumps(to_json(replace(inputs, kept=(str(first),)))))
    command = [sys.executable, "-I", "-m", "pu_engine.stage", "scoring", str(workdir)]
    process = subprocess.Popen(command)
    while not list(workdir.glob("out*/shard-00000.logits.npy")) and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert subprocess.run(command, check=False).returncode == 0
    assert read_manifest(workdir / "out")["digest"] == read_manifest(first)["digest"]
