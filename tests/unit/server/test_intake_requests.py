"""What a request's inline images and blobs become before there is a job."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from punnet.errors import PunnetError
from punnet.v1 import compression_pb2, options_pb2
from server.blobs import BlobStore
from server.folders import DataFolder
from server.intake_requests import IntakeRequests
from server.job_spec import inspection_spec
from server.storage_quota import StorageQuota

TENANT = "local"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BlobStore]:
    blobs = BlobStore(DataFolder(tmp_path))
    yield blobs
    blobs.close()


def prepare(store: BlobStore, teacher: str, contents: list[bytes]) -> None:
    rows = [options_pb2.InlineImage(label="cat", data=data) for data in contents]
    request = compression_pb2.CompressRequest(
        teacher=options_pb2.Teacher(sha256=teacher),
        images=options_pb2.LabelledImages(inline=options_pb2.InlineImages(images=rows)),
    )
    unlimited = StorageQuota(DataFolder(Path()), None)
    asyncio.run(IntakeRequests(store, unlimited).prepare(TENANT, request, inspection_spec(request)))


def test_inline_images_become_blobs(store: BlobStore) -> None:
    (teacher,) = store.put_all(TENANT, [b"a teacher"])
    contents = [b"a cat", b"a dog", b"a cat"]
    prepare(store, teacher, contents)
    for data in contents:
        found = store.find(TENANT, hashlib.sha256(data).hexdigest())
        assert found is not None
        assert found[0].read_bytes() == data


def test_nothing_is_stored_for_a_request_whose_teacher_is_missing(store: BlobStore) -> None:
    with pytest.raises(PunnetError) as refused:
        prepare(store, "0" * 64, [b"a cat"])
    assert (refused.value.code, refused.value.details["missing"]) == ("BLOB_MISSING", "1")
    assert store.find(TENANT, hashlib.sha256(b"a cat").hexdigest()) is None


def test_image_that_is_the_teacher_too_is_one_blob(store: BlobStore) -> None:
    prepare(store, hashlib.sha256(b"both").hexdigest(), [b"both"])
    assert store.find(TENANT, hashlib.sha256(b"both").hexdigest()) is not None


def test_thousand_inline_images_are_synced_once_each_and_once_a_folder(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (teacher,) = store.put_all(TENANT, [b"a teacher"])
    contents = [index.to_bytes(3, "big") for index in range(200)]
    synced, sync = [], os.fsync

    def counted(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        sync(file)

    monkeypatch.setattr(os, "fsync", counted)
    prepare(store, teacher, contents * 5)
    folders = {hashlib.sha256(data).hexdigest()[:2] for data in contents}
    assert len(synced) == len(set(synced)) == len(contents) + len(folders)
