"""A store on obstore's in-memory and local stores; on S3 where an endpoint is given."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore

from punnet.errors import InvalidRequest
from server.object_store import ObjectStore, StoreDamaged, open_store

S3_VARIABLE = "PUNNET_TEST_S3"


@pytest.fixture(params=["memory", "local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "s3":
        if S3_VARIABLE not in os.environ:
            pytest.skip(f"{S3_VARIABLE} names no s3://BUCKET/PREFIX to test with")
        yield (opened := open_store(f"{os.environ[S3_VARIABLE]}/{secrets.token_hex(8)}"))
        opened.remove_below("")
        return
    folder = tmp_path / "store"
    folder.mkdir()
    yield ObjectStore(MemoryStore() if request.param == "memory" else LocalStore(folder))


def test_what_is_there_is_not_overwritten(store: ObjectStore) -> None:
    assert store.put_new("a/b.json", b"first")
    assert not store.put_new("a/b.json", b"second")
    assert store.read("a/b.json") == b"first"


def test_what_is_not_there_is_none(store: ObjectStore) -> None:
    assert store.read("a") is None
    assert store.size("a") is None


def test_file_comes_back_as_it_was(store: ObjectStore, tmp_path: Path) -> None:
    data = secrets.token_bytes(100_000)
    (tmp_path / "sent").write_bytes(data)
    for _ in range(2):
        store.put_file("files/x", tmp_path / "sent")
    store.fetch("files/x", tmp_path / "came", hashlib.sha256(data).hexdigest())
    assert (tmp_path / "came").read_bytes() == data
    assert store.size("files/x") == len(data)


def test_changed_file_is_refused_and_not_left(store: ObjectStore, tmp_path: Path) -> None:
    store.put_new("files/x", b"something else")
    with pytest.raises(StoreDamaged):
        store.fetch("files/x", tmp_path / "came", "0" * 64)
    assert not (tmp_path / "came").exists()


def test_only_what_is_below_the_prefix_is_removed(store: ObjectStore) -> None:
    for path in ("runs/a/1", "runs/a/b/2", "runs/ab/3"):
        store.put_new(path, b"x")
    store.remove_below("runs/a")
    assert list(store.paths("runs")) == ["runs/ab/3"]


@pytest.mark.parametrize("url", ["", "bucket", "http://bucket/x", "s3:///x", "memory:///", "file:///not/there"])
def test_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="--store"):
        open_store(url)


def test_folder_is_a_store(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}").put_new("a/b", b"x")
    assert (tmp_path / "a" / "b").read_bytes() == b"x"
