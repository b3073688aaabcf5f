"""What a user names as a pool's images becomes plain tars."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from punnet import pool_sources
from punnet.archive import Member, write_tar
from punnet.errors import InvalidPool
from punnet.pool_sources import pool_tars
from punnet.transfer import file_sha256

HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def names(tar: Path) -> list[str]:
    with tarfile.open(tar, "r:") as opened:
        return opened.getnames()


def contents(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar, "r:") as opened:
        return {m.name: opened.extractfile(m).read() for m in opened}  # type: ignore[union-attr]


def write_parquet(path: Path, **columns: pa.Array) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def test_plain_tars_are_sent_as_they_are(tmp_path: Path) -> None:
    write_tar([Member(name="a.jpg", source=b"x")], tmp_path / "one.tar")
    assert list(pool_tars([tmp_path / "one.tar"], tmp_path / "scratch")) == [tmp_path / "one.tar"]


def test_folder_of_tars_gives_its_tars(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar"):
        (tmp_path / "pool").mkdir(exist_ok=True)
        write_tar([Member(name="a.jpg", source=b"x")], tmp_path / "pool" / name)
    found = list(pool_tars([tmp_path / "pool"], tmp_path / "scratch"))
    assert [tar.name for tar in found] == ["a.tar", "b.tar"]


def test_compressed_tar_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_tar([Member(name="a.jpg", source=b"x")], tmp_path / "one.tar")
    (tmp_path / "one.tar.gz").write_bytes(gzip.compress((tmp_path / "one.tar").read_bytes()))
    with pytest.raises(InvalidPool, match="gunzip"):
        list(pool_tars([tmp_path / "one.tar.gz"], tmp_path / "scratch"))


def test_pool_folder_is_packed_at_any_depth(tmp_path: Path) -> None:
    folder, scratch = tmp_path / "pool", tmp_path / "scratch"
    scratch.mkdir()
    for name in ("a.jpg", "x/b.PNG", "x/y/c.jpeg", "x/notes.txt", ".hidden.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (tar,) = pool_tars([folder], scratch)
    assert names(tar) == ["a.jpg", "x/b.PNG", "x/y/c.jpeg"]


def test_packed_tars_stay_within_their_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_sources, "POOL_TAR_BYTES", 40 * 1024)
    folder, scratch = tmp_path / "pool", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    for i in range(20):
        (folder / f"{i:02}.jpg").write_bytes(bytes(3000))
    tars = list(pool_tars([folder], scratch))
    assert len(tars) > 1
    assert all(tar.stat().st_size <= 40 * 1024 for tar in tars)
    assert [name for tar in tars for name in names(tar)] == [f"{i:02}.jpg" for i in range(20)]


def test_pool_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InvalidPool, match="holds neither"):
        list(pool_tars([tmp_path], tmp_path))


def test_sources_without_any_image_say_so(tmp_path: Path, scratch: Path) -> None:
    write_tar([], tmp_path / "none.tar")
    (tmp_path / "tables").mkdir()
    table = write_parquet(tmp_path / "tables" / "none.parquet", image=pa.array([], pa.binary()))
    for source in (tmp_path / "none.tar", table, table.parent):
        with pytest.raises(InvalidPool, match=f"There are no images in {source}") as caught:
            list(pool_tars([source], scratch))
        assert caught.value.code == "POOL_INVALID"


def test_pool_with_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a.jpg").symlink_to("/etc/hostname")
    with pytest.raises(InvalidPool, match="is a link"):
        list(pool_tars([tmp_path / "pool"], tmp_path))


def test_pool_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidPool, match="neither a folder of images nor a plain tar"):
        list(pool_tars([tmp_path / "nowhere"], tmp_path))


def test_rows_of_a_parquet_file_become_members(tmp_path: Path, scratch: Path) -> None:
    rows = [
        {"bytes": b"\xff\xd8a", "path": "x/a.JPG"},
        {"bytes": b"\x89PNG", "path": None},
        {"bytes": b"?", "path": "c"},
    ]
    file = write_parquet(tmp_path / "train-0.parquet", image=pa.array(rows, HF_IMAGE), label=pa.array([1, 2, 3]))
    (tar,) = pool_tars([file], scratch)
    assert contents(tar) == {
        "train-0/00000000.jpg": b"\xff\xd8a",
        "train-0/00000001.png": b"\x89PNG",
        "train-0/00000002.jpg": b"?",
    }


def test_plain_binary_column_and_folder_of_parquet_files(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "pool" / "sub").mkdir(parents=True)
    for name in ("b", "sub/a"):
        write_parquet(tmp_path / "pool" / f"{name}.parquet", jpg=pa.array([b"1", b"2"]), id=pa.array(["x", "y"]))
    (tar,) = pool_tars([tmp_path / "pool"], scratch)
    assert names(tar) == ["b/00000000.jpg", "b/00000001.jpg", "sub/a/00000000.jpg", "sub/a/00000001.jpg"]


def test_same_parquet_file_gives_the_same_tar(tmp_path: Path, scratch: Path) -> None:
    file = write_parquet(tmp_path / "t.parquet", image=pa.array([b"1" * 500, b"2" * 700]))
    (tar,) = pool_tars([file], scratch)
    first = file_sha256(tar)
    (tar,) = pool_tars([str(file)], scratch)
    assert file_sha256(tar) == first


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": pa.array([1])}, "0 columns that may hold images"),
        ({"a": pa.array([b"1"]), "b": pa.array([b"1"])}, "2 columns that may hold images"),
        ({"image": pa.array([{"bytes": None, "path": "a.jpg"}], HF_IMAGE)}, r"Row 0 .* no bytes"),
    ],
)
def test_parquet_without_one_column_of_images_is_refused(
    tmp_path: Path, scratch: Path, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidPool, match=message):
        list(pool_tars([write_parquet(tmp_path / "t.parquet", **columns)], scratch))


def test_damaged_parquet_is_refused(tmp_path: Path, scratch: Path) -> None:
    file = write_parquet(tmp_path / "t.parquet", image=pa.array([b"1" * 500]))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(InvalidPool, match="can't be read as Parquet"):
        list(pool_tars([file], scratch))


@pytest.mark.parametrize("offset", range(4, 44, 8))
def test_damaged_page_of_a_parquet_file_is_refused(tmp_path: Path, scratch: Path, offset: int) -> None:
    file = write_parquet(tmp_path / "t.parquet", image=pa.array([b"1" * 50, b"2" * 70]))
    data = bytearray(file.read_bytes())
    data[offset : offset + 8] = b"\xff" * 8
    file.write_bytes(data)
    with pytest.raises(InvalidPool, match="can't be read as Parquet"):
        list(pool_tars([file], scratch))


def test_path_of_a_row_that_is_no_text_is_passed_over(tmp_path: Path, scratch: Path) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.int64())])
    file = write_parquet(tmp_path / "t.parquet", image=pa.array([{"bytes": b"\x89PNG", "path": 7}], kind))
    (tar,) = pool_tars([file], scratch)
    assert names(tar) == ["t/00000000.png"]


@pytest.fixture
def memory() -> Iterator[Any]:
    """A file system in memory, as fsspec has it."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def test_files_behind_a_url_are_packed_like_a_folder(memory: Any, scratch: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array([b"row"])}), buffer)
    for name, data in {
        "a.jpg": b"A",
        "x/b.png": b"B",
        "x/.c.jpg": b"C",
        "n.txt": b"N",
        "t.parquet": buffer.getvalue(),
    }.items():
        memory.pipe_file(f"/pool/{name}", data)
    (tar,) = pool_tars(["memory://pool"], scratch)
    assert contents(tar) == {"a.jpg": b"A", "t/00000000.jpg": b"row", "x/b.png": b"B"}


def test_tar_behind_a_url_is_fetched_under_scratch(memory: Any, scratch: Path, tmp_path: Path) -> None:
    write_tar([Member(name="a.jpg", source=b"x")], tmp_path / "one.tar")
    memory.pipe_file("/pool/one.tar", (tmp_path / "one.tar").read_bytes())
    (tar,) = pool_tars(["memory://pool/one.tar"], scratch)
    assert tar.parent == scratch
    assert names(tar) == ["a.jpg"]


@pytest.mark.parametrize("url", ["memory://nothing-here", "nosuchprotocol://x"])
def test_url_that_gives_nothing_is_refused(url: str, scratch: Path) -> None:
    with pytest.raises(InvalidPool):
        list(pool_tars([url], scratch))
