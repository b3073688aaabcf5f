"""A stage by way of a store: what is sent, what a node gets, and that the first result counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from pu_engine.execution import execute
from pu_engine.jsonform import to_json
from pu_engine.pipeline import SCORING
from pu_engine.progress import SilentProgress
from pu_engine.results import read_manifest
from pu_engine.types import File, Folder
from server.manifest import read_finished
from server.object_store import ObjectStore, StoreDamaged
from server.runners.parcels import Digests, Place, deliver, is_published, pack, publish, relocated, unpack
from server.runners.port import StageCommand
from server.runners.ray_task import run_parcel

Pack = Callable[[Path, Mapping[str, bytes]], File]
MakeJpeg = Callable[..., bytes]


@pytest.fixture
def inputs(
    tmp_path: Path,
    make_pool: Callable[..., Folder],
    make_intake: Callable[..., Folder],
    make_jpeg: MakeJpeg,
    pack: Pack,
) -> dict[str, Any]:
    """Seven pool images in two shards and three labelled JPEGs."""
    pool = make_pool(tmp_path, {f"{i:02d}.jpg": make_jpeg(i) for i in range(7)})
    images = pack(tmp_path / "labelled.tar", {f"a/{i}.jpg": make_jpeg(100 + i, quality=60) for i in range(3)})
    intake = make_intake(tmp_path / "intake")
    return {"intake": to_json(intake), "pool": to_json(pool), "images": {"tar": to_json(images)}, "threads": 1}


@pytest.fixture
def command(tmp_path: Path, inputs: dict[str, Any]) -> StageCommand:
    workdir = tmp_path / "stage"
    workdir.mkdir()
    (workdir / "inputs.json").write_text(json.dumps(inputs))
    read = (Path(inputs["intake"]["path"]), Path(inputs["pool"]["path"]), Path(inputs["images"]["tar"]["path"]))
    return StageCommand(
        stage="scoring", workdir=workdir, read=read, profile="model", wall_seconds=60.0, threads=1, run_id="test"
    )


@pytest.fixture
def place() -> Place:
    return Place(store=ObjectStore(MemoryStore()), prefix="runs/test/key", result="key")


def on_a_node(command: StageCommand, place: Place, listing: str, scratch: Path) -> Path:
    """Run the stage from what the store has; its finished folder there."""
    scratch.mkdir()
    here = deliver(command, place, listing, scratch)
    return execute(SCORING, here.workdir, json.loads((here.workdir / "inputs.json").read_text()), SilentProgress())


def test_result_of_another_node_is_that_of_this_one(
    tmp_path: Path, command: StageCommand, inputs: dict[str, Any], place: Place
) -> None:
    out = on_a_node(command, place, pack(command, place, Digests()), tmp_path / "node")
    assert publish(out, read_finished(SCORING, out), place)
    assert unpack(command.workdir, place)
    (tmp_path / "here").mkdir()
    here = execute(SCORING, tmp_path / "here", inputs, SilentProgress())
    assert read_manifest(command.workdir / "out")["digest"] == read_manifest(here)["digest"]
    read_finished(SCORING, command.workdir / "out")


def test_the_first_result_counts_and_the_second_node_runs_nothing(
    tmp_path: Path, command: StageCommand, place: Place
) -> None:
    listing = pack(command, place, Digests())
    first = on_a_node(command, place, listing, tmp_path / "one")
    second = on_a_node(command, place, listing, tmp_path / "two")
    assert publish(first, read_finished(SCORING, first), place)
    assert not publish(second, read_finished(SCORING, second), place)
    unpack(command.workdir, place)
    kept = (command.workdir / "out" / "manifest.json").read_bytes()
    assert kept == (first / "manifest.json").read_bytes() != (second / "manifest.json").read_bytes()
    assert run_parcel(command, 0.2, print, place=place, listing=listing)["returncode"] == 0


def test_part_of_a_scoring_is_sent_its_own_shard_only(
    tmp_path: Path, command: StageCommand, inputs: dict[str, Any], place: Place
) -> None:
    (command.workdir / "inputs.json").write_text(json.dumps({**inputs, "only": ["shard-00001"]}))
    (tmp_path / "node").mkdir()
    here = deliver(command, place, pack(command, place, Digests()), tmp_path / "node")
    names = {path.name for root in here.read for path in root.rglob("*")}
    assert {"pool.json", "shard-00000.arrow", "shard-00001.arrow", "shard-00001.tar"} <= names
    assert "shard-00000.tar" not in names


def test_inputs_that_were_changed_in_the_store_are_refused(
    tmp_path: Path, command: StageCommand, inputs: dict[str, Any], place: Place
) -> None:
    place.store.put_new(place.file(inputs["images"]["tar"]["sha256"]), command.read[2].read_bytes()[:-1] + b"?")
    listing = pack(command, place, Digests())
    (tmp_path / "node").mkdir()
    with pytest.raises(StoreDamaged):
        deliver(command, place, listing, tmp_path / "node")


def test_result_that_leaves_its_folder_is_refused(command: StageCommand, place: Place) -> None:
    place.store.put_new(place.result_list, json.dumps([["../inputs.json", "0" * 64, 1]]).encode())
    assert is_published(place)
    with pytest.raises(ValueError, match="leaves its folder"):
        unpack(command.workdir, place)


def test_nothing_is_unpacked_where_there_is_no_result(command: StageCommand, place: Place) -> None:
    assert not unpack(command.workdir, place)


def test_only_whole_path_components_are_moved() -> None:
    value = {"a": ["/data/x", "/data/xy", {"b": "/data/x/out"}], "n": 1}
    assert relocated(value, {"/data/x": "/new"}) == {"a": ["/new", "/data/xy", {"b": "/new/out"}], "n": 1}
