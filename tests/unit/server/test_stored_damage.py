"""Files of the data folder that change after they were checked: noticed, named, removed, and made anew."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from pu_engine.pipeline import INGEST
from pu_engine.results import build_manifest
from server import job_table
from server.blobs import BlobStore
from server.folders import DataFolder
from server.job_table import JobRow, NewJob
from server.manifest import read_finished
from server.runners.local import LocalRunner
from server.stage_execution import Finished, JobContext, StageExecution, StageFailed
from server.store import Store
from server.stored_damage import check_stored
from server.watch import Watch
from tests.service.running_server import image_tar
from tests.unit.server.test_manifest import EXTRA

TENANT = "local"
TEACHER = b"the bytes of a teacher"


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def claimed(store: Store, kind: str, job_id: str, spec: dict[str, Any]) -> JobRow:
    await store.write(job_table.insert_job, NewJob(tenant=TENANT, id=job_id, kind=kind, spec=spec))
    found = await store.write(job_table.claim, (kind,))
    assert found is not None
    return found[0]


def test_a_result_whose_bits_have_changed_is_made_anew(tmp_path: Path) -> None:
    data = DataFolder(tmp_path / "data")
    data.root.mkdir()
    tar = tmp_path / "pool.tar"
    tar.write_bytes(image_tar(3))
    named = {"path": str(tar), "sha256": hashlib.sha256(tar.read_bytes()).hexdigest()}
    inputs = {"name": "web", "tars": [named], "threads": 1}
    store = Store(data.database)
    execution = StageExecution(store, data, LocalRunner(), Watch(store))

    async def run(job_id: str) -> Finished:
        job = await claimed(store, "ingest", job_id, {})
        context = JobContext(job=job, stop=asyncio.Event(), cancelled=lambda: False)
        return await execution.finish(context, INGEST, inputs, [tar])

    async def run_twice() -> tuple[bytes, bytes]:
        shard = (await run("first")).folder / "shard-00000.tar"
        made = shard.read_bytes()
        flip_bit(shard)
        await run("second")
        return made, shard.read_bytes()

    made, found = asyncio.run(run_twice())
    store.close()
    assert found == made


@pytest.fixture
def finished(tmp_path: Path) -> Finished:
    """A result of a stage, whole."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "pool.json").write_text("{}")
    (out / "manifest.json").write_text(json.dumps(build_manifest(out, {}, EXTRA)))
    return Finished(folder=out, manifest=read_finished(INGEST, out))


def checked(tmp_path: Path, finished: Finished, *, damage: Path | None) -> str:
    """The code with which a job fails that read a result and a teacher; empty where both are whole."""
    data = DataFolder(tmp_path)
    blobs = BlobStore(data)
    (sha256,) = blobs.put_all(TENANT, [TEACHER])
    blobs.pin(TENANT, {"teacher": {"sha256": sha256}}, data.job(TENANT, "job"))
    if damage is not None:
        flip_bit(damage)
    try:
        asyncio.run(check_stored(data, blobs, (TENANT, "job"), [(INGEST, finished)]))
    except StageFailed as failure:
        return str(failure.error["code"])
    finally:
        blobs.close()
    return ""


def test_what_is_whole_passes(tmp_path: Path, finished: Finished) -> None:
    assert checked(tmp_path, finished, damage=None) == ""


def test_a_damaged_result_fails_its_job_and_is_removed(tmp_path: Path, finished: Finished) -> None:
    assert checked(tmp_path, finished, damage=finished.folder / "pool.json") == "ARTIFACT_CORRUPT"
    assert not finished.folder.exists()


def test_a_damaged_blob_fails_its_job_and_is_asked_for_again(tmp_path: Path, finished: Finished) -> None:
    sha256 = hashlib.sha256(TEACHER).hexdigest()
    blob = tmp_path / "blobs" / TENANT / sha256[:2] / f"{sha256}-{len(TEACHER)}"
    assert checked(tmp_path, finished, damage=blob) == "ARTIFACT_CORRUPT"
    assert BlobStore(DataFolder(tmp_path)).find(TENANT, sha256) is None
