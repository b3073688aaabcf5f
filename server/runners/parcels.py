"""A stage's inputs and result by way of a store, for nodes that do not see the server's data folder.

Of one run of a stage everything lies below one prefix, which is removed when the run has ended:

    files/<sha256>        inputs and results, by content
    results/<name>.json   the list of a result's files, written once: the first task that finishes has made the result
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from server.folders import fsync_folder, remove_tree
from server.manifest import MANIFEST, Manifest
from server.object_store import ObjectStore
from server.runners.port import StageCommand

INPUTS = "inputs.json"
SHARD_SUFFIX = ".tar"
FETCHED = "fetched"
NOT_SENT = frozenset({"out", "out.partial", "tmp", FETCHED, INPUTS, "error.json", "stderr.log"})

Row = tuple[str, str, int]  # relative path, sha256, bytes
DigestOf = Callable[[Path], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in the store a run of a stage is, and what its result is called there."""

    store: ObjectStore
    prefix: str
    result: str

    def file(self, sha256: str) -> str:
        return f"{self.prefix}/files/{sha256}"

    @property
    def result_list(self) -> str:
        return f"{self.prefix}/results/{self.result}.json"


class Digests:
    """sha256 of files, each read once while it stays as it is."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int], str] = {}

    def __call__(self, path: Path) -> str:
        status = path.stat()
        key = (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._known:
            with path.open("rb") as file:
                self._known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._known[key]


def pack(command: StageCommand, place: Place, digest_of: DigestOf) -> str:
    """Put what a stage reads into the store; the digest of the list, which is there too."""
    inputs = json.loads((command.workdir / INPUTS).read_text())
    only = inputs.get("only")
    roots = []
    for root in command.read:
        files = [path for path in _files(root) if not only or path.suffix != SHARD_SUFFIX or path.stem in only]
        roots.append({"path": str(root), "files": _sent(root, files, place, digest_of)})
    own = [path for path in _files(command.workdir) if path.relative_to(command.workdir).parts[0] not in NOT_SENT]
    content = {
        "inputs": inputs,
        "roots": roots,
        "workdir": {"path": str(command.workdir), "files": _sent(command.workdir, own, place, digest_of)},
    }
    data = json.dumps(content, sort_keys=True).encode()
    digest = hashlib.sha256(data).hexdigest()
    place.store.put_new(place.file(digest), data)
    return digest


def deliver(command: StageCommand, place: Place, parcel: str, scratch: Path) -> StageCommand:
    """Lay a stage's inputs out below a folder of this node; the command that runs there.

    Raises:
        FileNotFoundError, StoreDamaged: the store lacks something, or it was changed.
    """
    workdir = scratch / "work"
    workdir.mkdir()
    place.store.fetch(place.file(parcel), scratch / "parcel.json", parcel)
    content = json.loads((scratch / "parcel.json").read_text())
    moved = {content["workdir"]["path"]: str(workdir)}
    for number, root in enumerate(content["roots"]):
        target = scratch / f"input-{number}"
        moved[root["path"]] = str(target)
        _fetch_all(root["files"], target, place)
    _fetch_all(content["workdir"]["files"], workdir, place)
    (workdir / INPUTS).write_text(json.dumps(relocated(content["inputs"], moved)))
    return replace(command, workdir=workdir, read=tuple(Path(moved[root["path"]]) for root in content["roots"]))


def publish(out: Path, manifest: Manifest, place: Place) -> bool:
    """Put a checked result into the store; False where another task has made it before."""
    rows: list[Row] = [(row.path, row.sha256, row.size) for row in manifest.files]
    digest = hashlib.sha256((out / MANIFEST).read_bytes()).hexdigest()
    rows.append((MANIFEST, digest, (out / MANIFEST).stat().st_size))
    for path, sha256, _ in rows:
        place.store.put_file(place.file(sha256), out / path)
    return place.store.put_new(place.result_list, json.dumps(rows).encode())


def is_published(place: Place) -> bool:
    """Whether the result is there."""
    return place.store.size(place.result_list) is not None


def unpack(workdir: Path, place: Place) -> bool:
    """Fetch a result as `workdir/out`; False where there is none.

    Raises:
        FileNotFoundError, StoreDamaged: the store lacks something, or it was changed.
    """
    data = place.store.read(place.result_list)
    if data is None:
        return False
    fetched = workdir / FETCHED
    remove_tree(fetched)
    fetched.mkdir()
    _fetch_all(json.loads(data), fetched, place)
    for folder in {path.parent for path in fetched.rglob("*")}:
        fsync_folder(folder)
    remove_tree(workdir / "out")
    os.rename(fetched, workdir / "out")
    fsync_folder(workdir)
    return True


def relocated(value: Any, moved: Mapping[str, str]) -> Any:
    """A stage's inputs with the paths below each folder that has moved."""
    if isinstance(value, str):
        for old, new in moved.items():
            if value == old or value.startswith(f"{old}/"):
                return new + value[len(old) :]
        return value
    if isinstance(value, Mapping):
        return {name: relocated(inner, moved) for name, inner in value.items()}
    if isinstance(value, list):
        return [relocated(inner, moved) for inner in value]
    return value


def _files(root: Path) -> Iterator[Path]:
    """A file itself, or the regular files below a folder; hidden ones are scratch."""
    if root.is_file():
        yield root
        return
    for path in sorted(root.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not hidden and path.is_file() and not path.is_symlink():
            yield path


def _sent(root: Path, files: Sequence[Path], place: Place, digest_of: DigestOf) -> list[Row]:
    rows: list[Row] = []
    for path in files:
        digest = digest_of(path)
        place.store.put_file(place.file(digest), path)
        rows.append((path.relative_to(root).as_posix(), digest, path.stat().st_size))
    return rows


def _fetch_all(rows: Sequence[Sequence[Any]], folder: Path, place: Place) -> None:
    """Fetch files; one whose relative path is "." is the folder's own path."""
    for relative, sha256, _ in rows:
        pure = PurePosixPath(relative)
        if pure.is_absolute() or ".." in pure.parts:
            raise ValueError(f"a path that leaves its folder: {relative!r}")
        target = folder / pure
        target.parent.mkdir(parents=True, exist_ok=True)
        place.store.fetch(place.file(sha256), target, sha256)
