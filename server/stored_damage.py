"""Files that have changed since they were checked: a disk that forgets must not decide what a student learns."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from pu_engine.pipeline import Stage
from server.blobs import BlobStore
from server.folders import DataFolder, remove_tree
from server.manifest import ProtocolError, read_finished
from server.stage_execution import Finished, StageFailed

log = logging.getLogger(__name__)

LOOK = "Have the disk looked at if it happens again."


async def check_stored(
    data: DataFolder, blobs: BlobStore, job: tuple[str, str], used: Sequence[tuple[Stage, Finished]]
) -> None:
    """Read all again that a job has read: the results of its stages, and the blobs that its folder links to.

    At the job's end, so that what changed while a stage read it is noticed too. What is damaged is removed: the same
    job sent again makes it anew, or the client uploads it.

    Args:
        job: tenant and id.

    Raises:
        StageFailed: ARTIFACT_CORRUPT.
    """
    for stage, finished in used:
        try:
            await asyncio.to_thread(read_finished, stage, finished.folder)
        except ProtocolError as damage:
            log.error("a result has changed since it was made", extra={"stage": stage.name, "why": str(damage)})
            await asyncio.to_thread(remove_tree, finished.folder)
            raise StageFailed(
                "ARTIFACT_CORRUPT",
                f"The stored result of stage {stage.name} is no longer what the stage made: {damage}.",
                f"Send the job again: the result was removed and is made anew. {LOOK}",
                {"stage": stage.name},
            ) from damage
    tenant, job_id = job
    damaged = await asyncio.to_thread(_damaged, data.job(tenant, job_id))
    if damaged:
        log.error("blobs have changed since they were uploaded", extra={"sha256": damaged})
        await asyncio.to_thread(blobs.forget, tenant, damaged)
        raise StageFailed(
            "ARTIFACT_CORRUPT",
            f"{len(damaged)} stored files are no longer what was uploaded, the first {damaged[0]}.",
            f"Send the job again with its files: what was damaged was removed and is uploaded anew. {LOOK}",
            {"sha256": damaged[0], "damaged": str(len(damaged))},
        )


def _damaged(folder: Path) -> list[str]:
    """Names of the files in a job's folder that are not the sha256 of their content."""
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != path.name:
                found.append(path.name)
    return found
