"""Tars become a pool."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pu_engine import ingest
from pu_engine.errors import EngineError
from pu_engine.imaging import images
from pu_engine.imaging.archive import Limits, Member
from pu_engine.imaging.image_check import CheckedImage, check_image
from pu_engine.jsonform import from_json
from pu_engine.pools import shard_writer
from pu_engine.pools.pool import open_pool, pool_folder
from pu_engine.pools.pool_index import read_index
from pu_engine.pools.pool_types import IngestInputs, Pool, Shard, Shrink
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest, file_sha256
from pu_engine.types import File, Folder

Pack = Callable[[Path, Mapping[str, bytes]], File]
MakeJpeg = Callable[..., bytes]


def ingested(
    out: Path,
    *tars: File,
    shard_images: int = 5000,
    threads: int = 1,
    progress: SilentProgress | None = None,
    pool: Folder | None = None,
    shrink: Shrink | None = None,
) -> Pool:
    out.mkdir(exist_ok=True)
    inputs = IngestInputs(name="tiny", tars=tars, shard_images=shard_images, threads=threads, pool=pool, shrink=shrink)
    return ingest.run(inputs, out, progress or SilentProgress())


def index_rows(out: Path) -> list[dict[str, object]]:
    """Rows of all shards, each with its shard's name."""
    return [
        {**row, "shard": path.stem}
        for path in sorted(out.glob("shard-*.arrow"))
        for row in read_index(path).to_pylist()
    ]


def digest(out: Path) -> str:
    value: str = build_manifest(out, None, {})["digest"]
    return value


@pytest.fixture
def upload(tmp_path: Path, pack: Pack, make_jpeg: MakeJpeg) -> File:
    return pack(tmp_path / "upload.tar", {f"train/{i:03d}.jpg": make_jpeg(i) for i in range(12)})


def test_shards_hold_the_original_bytes_in_order(tmp_path: Path, upload: File, make_jpeg: MakeJpeg) -> None:
    pool = ingested(tmp_path / "out", upload, shard_images=5)
    assert [(s.name, s.entries) for s in pool.shards] == [("shard-00000", 5), ("shard-00001", 5), ("shard-00002", 2)]
    data = []
    for shard in pool.shards:
        assert file_sha256(tmp_path / "out" / f"{shard.name}.tar") == shard.sha256
        with tarfile.open(tmp_path / "out" / f"{shard.name}.tar") as tar:
            data += [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    assert data == [(f"train/{i:03d}.jpg", make_jpeg(i)) for i in range(12)]


def test_index_points_at_every_image(tmp_path: Path, upload: File, make_jpeg: MakeJpeg) -> None:
    ingested(tmp_path / "out", upload, shard_images=5)
    for i, row in enumerate(index_rows(tmp_path / "out")):
        shard = (tmp_path / "out" / f"{row['shard']}.tar").read_bytes()
        start, size = row["offset"], row["size"]
        assert isinstance(start, int)
        assert isinstance(size, int)
        assert shard[start : start + size] == make_jpeg(i)
        assert (row["key"], row["width"], row["height"], row["status"]) == (f"train/{i:03d}", 10, 12, "ok")


def test_pool_json_is_the_result(tmp_path: Path, upload: File) -> None:
    pool = ingested(tmp_path / "out", upload)
    assert from_json(Pool, json.loads((tmp_path / "out" / "pool.json").read_text())) == pool
    assert pool.shards[0].index_sha256 == file_sha256(tmp_path / "out" / "shard-00000.arrow")
    assert (pool.images, pool.bad_images, pool.size) == (12, 0, sum(s.size for s in pool.shards))


def test_bytes_do_not_depend_on_run_or_threads(tmp_path: Path, upload: File) -> None:
    ingested(tmp_path / "a", upload, shard_images=5)
    ingested(tmp_path / "b", upload, shard_images=5, threads=3)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_leftovers_of_a_killed_run_change_nothing(tmp_path: Path, upload: File) -> None:
    ingested(tmp_path / "a", upload, shard_images=5)
    (tmp_path / "b").mkdir()
    for name in ("shard-00000.tar", "shard-00007.tar", "shard-00000.arrow", ".shard-00001.tar.partial"):
        (tmp_path / "b" / name).write_bytes(b"cut")
    ingested(tmp_path / "b", upload, shard_images=5)
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert not [p for p in (tmp_path / "b").iterdir() if p.name.startswith(".")]


class Killed(Exception):
    """Stands for a kill: nothing of the stage's own runs after it but `finally`."""


@pytest.mark.parametrize("finished", [1, 2, 3])
def test_killed_run_goes_on_behind_its_last_shard(
    tmp_path: Path, pack: Pack, make_jpeg: MakeJpeg, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    members = {f"{i:03d}.jpg": make_jpeg(i % 12) for i in range(18)} | {"004b.jpg": b"bad", "009b.jpg": b"bad"}
    tars = [pack(tmp_path / f"{n}.tar", dict(sorted(members.items())[n::2])) for n in range(2)]
    whole = ingested(tmp_path / "a", *tars, shard_images=5)

    note = ingest._note_resumable
    checked: list[str] = []

    def note_and_die(inputs: IngestInputs, out: Path, shards: list[Shard]) -> None:
        note(inputs, out, shards)
        if len(shards) == finished:
            raise Killed

    monkeypatch.setattr(ingest, "_note_resumable", note_and_die)
    with pytest.raises(Killed):
        ingested(tmp_path / "b", *tars, shard_images=5, threads=2)
    monkeypatch.undo()
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "b").glob("shard-*")}
    assert len(times) == 2 * finished

    def counted(member: Member, shrink: Shrink | None) -> CheckedImage:
        checked.append(member.name)
        return check_image(member, shrink)

    monkeypatch.setattr("pu_engine.ingest.check_image", counted)
    resumed = ingested(tmp_path / "b", *tars, shard_images=5)
    assert resumed == whole
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert {name: (tmp_path / "b" / name).stat().st_mtime_ns for name in times} == times
    assert len(checked) <= 20 - 5 * finished
    assert not [p for p in (tmp_path / "b").iterdir() if p.name.startswith(".")]


def test_shards_of_other_inputs_or_changed_ones_are_not_gone_on_with(
    tmp_path: Path, upload: File, pack: Pack, make_jpeg: MakeJpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = ingest._note_resumable

    def note_and_die(*arguments: Any) -> None:
        note(*arguments)
        raise Killed

    def leave_a_shard() -> None:
        monkeypatch.setattr(ingest, "_note_resumable", note_and_die)
        with pytest.raises(Killed):
            ingested(tmp_path / "b", upload, shard_images=5)
        monkeypatch.setattr(ingest, "_note_resumable", note)

    other = pack(tmp_path / "other.tar", {f"{i}.jpg": make_jpeg(40 + i) for i in range(9)})
    for tar, damaged in ((other, False), (upload, True)):
        leave_a_shard()
        if damaged:
            path = tmp_path / "b" / "shard-00000.tar"
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        ingested(tmp_path / "a", tar, shard_images=5)
        ingested(tmp_path / "b", tar, shard_images=5)
        assert digest(tmp_path / "a") == digest(tmp_path / "b")


def test_appending_writes_new_shards_only(tmp_path: Path, upload: File, pack: Pack, make_jpeg: MakeJpeg) -> None:
    first = ingested(tmp_path / "a", upload, shard_images=5)
    more = pack(tmp_path / "2.tar", {"new.jpg": make_jpeg(50), "train/003.jpg": make_jpeg(3), "bad.jpg": b"no"})
    second = ingested(tmp_path / "b", more, shard_images=5, pool=pool_folder(tmp_path / "a"))
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["pool.json", "shard-00003.arrow", "shard-00003.tar"]
    assert second.shards[:3] == first.shards
    assert (second.images, second.bad_images, second.duplicates) == (14, 1, 1)
    rows = index_rows(tmp_path / "b")
    assert [(row["key"], row["duplicate_of"]) for row in rows] == [
        ("new", None),
        ("train/003~2", "train/003"),
        ("bad", None),
    ]


def test_appended_pool_is_read_as_one(tmp_path: Path, upload: File, pack: Pack, make_jpeg: MakeJpeg) -> None:
    ingested(tmp_path / "a", upload, shard_images=5)
    ingested(tmp_path / "b", pack(tmp_path / "2.tar", {"new.jpg": make_jpeg(50)}), pool=pool_folder(tmp_path / "a"))
    for path in (tmp_path / "a").glob("shard-*"):
        (tmp_path / "b" / path.name).hardlink_to(path)
    reader = open_pool(pool_folder(tmp_path / "b"))
    assert reader.keys == (*(f"train/{i:03d}" for i in range(12)), "new")
    assert list(reader.read([2, 12])) == [(2, make_jpeg(2)), (12, make_jpeg(50))]


def test_appending_nothing_usable_or_to_a_damaged_pool_is_refused(tmp_path: Path, upload: File, pack: Pack) -> None:
    ingested(tmp_path / "a", upload)
    pool = pool_folder(tmp_path / "a")
    bad = pack(tmp_path / "2.tar", {"bad.jpg": b"no"})
    with pytest.raises(EngineError, match=r"No image .* is usable"):
        ingested(tmp_path / "b", bad, pool=pool)
    (tmp_path / "a" / "shard-00000.arrow").write_bytes(b"no index")
    with pytest.raises(EngineError, match=r"shard-00000\.arrow") as caught:
        ingested(tmp_path / "b", upload, pool=pool)
    assert caught.value.code == "POOL_INVALID"


def test_large_images_are_stored_smaller(tmp_path: Path, pack: Pack, make_jpeg: MakeJpeg) -> None:
    large, small = make_jpeg(1, height=60, width=90), make_jpeg(2, height=20, width=90)
    shrink = Shrink(short_side=20, quality=80)
    tar = pack(tmp_path / "1.tar", {"large.jpg": large, "small.jpg": small})
    pool = ingested(tmp_path / "out", tar, shrink=shrink)
    assert pool.shrink == shrink
    rows = index_rows(tmp_path / "out")
    assert [(row["height"], row["width"]) for row in rows] == [(20, 30), (20, 90)]
    assert [row["source_sha256"] == row["sha256"] for row in rows] == [False, True]
    reader = open_pool(pool_folder(tmp_path / "out"))
    (_, stored), (_, kept) = reader.read([0, 1])
    assert images.jpeg_quality(stored) == (80, "4:2:0")
    assert kept == small
    assert reader.holds([hashlib.sha256(large).hexdigest()]).tolist() == [True, False]
    resized = images.resize(images.decode(large, 3), 20, 30)
    np.testing.assert_array_equal(images.decode(stored, 3), images.reencode(resized, 80, "4:2:0"))


def test_appended_images_are_shrunk_like_the_pool(tmp_path: Path, pack: Pack, make_jpeg: MakeJpeg) -> None:
    shrink = Shrink(short_side=20, quality=80)
    ingested(tmp_path / "a", pack(tmp_path / "1.tar", {"a.jpg": make_jpeg(1)}), shrink=shrink)
    tar = pack(tmp_path / "2.tar", {"b.jpg": make_jpeg(1, height=60, width=90)})
    assert ingested(tmp_path / "b", tar, pool=pool_folder(tmp_path / "a")).shrink == shrink
    assert index_rows(tmp_path / "b")[0]["height"] == 20


def test_taken_keys_get_a_suffix(tmp_path: Path, pack: Pack, make_jpeg: MakeJpeg) -> None:
    first = pack(tmp_path / "1.tar", {"a.jpg": make_jpeg(1), "a.png": make_jpeg(2), "a~2.jpg": make_jpeg(3)})
    second = pack(tmp_path / "2.tar", {"a.jpg": make_jpeg(4), "b.c.jpg": make_jpeg(5), "b_c.jpg": make_jpeg(6)})
    ingested(tmp_path / "out", first, second)
    assert [row["key"] for row in index_rows(tmp_path / "out")] == ["a", "a~2", "a~2~2", "a~3", "b_c", "b_c~2"]


def test_duplicates_are_kept_and_name_the_first(tmp_path: Path, pack: Pack, make_jpeg: MakeJpeg) -> None:
    members = {"a.jpg": make_jpeg(1), "b.jpg": make_jpeg(2), "c.jpg": make_jpeg(1), "d.jpg": make_jpeg(1, quality=80)}
    pool = ingested(tmp_path / "out", pack(tmp_path / "1.tar", members), shard_images=2)
    rows = index_rows(tmp_path / "out")
    assert (pool.images, pool.duplicates, pool.near_duplicates) == (4, 1, 1)
    assert [row["duplicate_of"] for row in rows] == [None, None, "a", None]
    assert [row["near_duplicate_of"] for row in rows] == [None, None, None, "a"]


def test_bad_images_are_recorded_and_stored_nowhere(tmp_path: Path, pack: Pack, make_jpeg: MakeJpeg) -> None:
    cut = make_jpeg(1)[:-60]
    tar = pack(tmp_path / "1.tar", {"cut.jpg": cut, "good.jpg": make_jpeg(2), "moving.gif": b"GIF89a"})
    progress = SilentProgress()
    pool = ingested(tmp_path / "out", tar, progress=progress)
    bad, good, other = index_rows(tmp_path / "out")
    assert (pool.images, pool.bad_images, pool.shards[0].entries) == (1, 2, 1)
    assert (bad["status"], bad["sha256"], bad["offset"], good["status"]) == ("bad", None, None, "ok")
    assert "ends within a scan" in str(bad["reason"])
    assert "neither JPEG nor PNG" in str(other["reason"])
    assert cut not in (tmp_path / "out" / "shard-00000.tar").read_bytes()
    assert "2 of 3 images (66.7%)" in progress.warnings[0]
    assert "neither JPEG nor PNG" in progress.warnings[0]


def test_few_bad_images_do_not_warn(tmp_path: Path, pack: Pack, make_jpeg: MakeJpeg) -> None:
    members = {f"{i}.jpg": make_jpeg(1) for i in range(100)} | {"bad.jpg": b"no"}
    progress = SilentProgress()
    assert ingested(tmp_path / "out", pack(tmp_path / "1.tar", members), progress=progress).bad_images == 1
    assert progress.warnings == []


def test_other_members_are_passed_over(tmp_path: Path, pack: Pack, make_jpeg: MakeJpeg) -> None:
    members = {"a.txt": b"text", "a": make_jpeg(1), "a.json": b"{}", "b/._a.jpg": b"resource fork"}
    pool = ingested(tmp_path / "out", pack(tmp_path / "1.tar", members))
    assert (pool.images, pool.bad_images) == (1, 0)


def test_too_large_image_is_bad(
    tmp_path: Path, pack: Pack, make_jpeg: MakeJpeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(members=9, total_bytes=10**6, member_bytes=1000)
    monkeypatch.setattr(ingest, "LIMITS", limits)
    tar = pack(tmp_path / "1.tar", {"large.jpg": b"x" * 1001, "good.jpg": make_jpeg(2)})
    assert ingested(tmp_path / "out", tar).bad_images == 1
    row = index_rows(tmp_path / "out")[0]
    assert (row["source_sha256"], row["size"]) == (None, 1001)


def test_shards_end_at_their_byte_limit(tmp_path: Path, upload: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "SHARD_BYTES", 5000)
    pool = ingested(tmp_path / "out", upload)
    assert len(pool.shards) > 1
    assert sum(s.entries for s in pool.shards) == 12


@pytest.mark.parametrize("members", [{}, {"a.txt": b"x"}, {"a.jpg": b"no image"}])
def test_pool_without_images_is_refused(tmp_path: Path, pack: Pack, members: dict[str, bytes]) -> None:
    with pytest.raises(EngineError) as caught:
        ingested(tmp_path / "out", pack(tmp_path / "1.tar", members))
    assert caught.value.code == "POOL_INVALID"
    assert not (tmp_path / "out" / "pool.json").exists()


def test_changed_tar_is_noticed(tmp_path: Path, upload: File) -> None:
    with pytest.raises(EngineError) as caught:
        ingested(tmp_path / "out", File(path=upload.path, sha256="0" * 64))
    assert caught.value.code == "DIGEST_MISMATCH"
    assert not (tmp_path / "out" / "pool.json").exists()


def test_long_and_foreign_names_survive(tmp_path: Path, make_jpeg: MakeJpeg) -> None:
    name = "größe/" + "x" * 300 + ".jpg"
    data, buffer = make_jpeg(1), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    path = tmp_path / "1.tar"
    path.write_bytes(buffer.getvalue())
    ingested(tmp_path / "out", File(path=str(path), sha256=file_sha256(path)))
    with tarfile.open(tmp_path / "out" / "shard-00000.tar") as tar:
        assert tar.getnames() == [name]
