"""What goes when a job goes: its folder, stages and blobs that nobody else needs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from server.blobs import BlobStore
from server.folders import DataFolder, remove_tree


def remove_unpinned_blobs(blobs: BlobStore, tenant: str, digests: Iterable[str]) -> None:
    """Remove the blobs that no job's folder links to; none may be pinned meanwhile."""
    for path, _ in blobs.find_all(tenant, digests).values():
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(path).st_nlink == 1:
                path.unlink()


def sweep_job_folders(data: DataFolder, active: set[tuple[str, str]]) -> list[Path]:
    """Remove the folders of jobs, given by (tenant, id), that will not run: what a crash left. Returns them."""
    swept = [folder for folder in (data.root / "jobs").glob("*/*") if (folder.parent.name, folder.name) not in active]
    for folder in swept:
        remove_tree(folder)
    return swept


def sweep_pools(data: DataFolder, needed: set[tuple[str, str, str]]) -> list[Path]:
    """Remove versions of pools, given by (tenant, name, sha256), that no pool is and no job reads. Returns them."""
    versions = (data.root / "pools").glob("*/*/*")
    swept = [v for v in versions if (v.parent.parent.name, v.parent.name, v.name) not in needed]
    for version in swept:
        remove_tree(version)
        with contextlib.suppress(OSError):  # another version stands beside it
            version.parent.rmdir()
    return swept
