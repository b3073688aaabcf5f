"""Files on an S3-compatible store, or in a folder that several machines share, through obstore.

A store knows no rename. What is named by its content may be written twice; what is not is written only where nothing is
there (`put_new`), so that of two writers one has made it and the other learns so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from punnet.errors import make_error

SCHEMES = ("s3", "file")
CHUNK_BYTES = 4 << 20
INSTALL = "Install it with `pip install 'punnet[ray]'`."


class StoreDamaged(Exception):
    """What the store holds under a digest is something else."""


class ObjectStore:
    """The few calls that Punnet makes; all of them block."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def put_new(self, path: str, data: bytes) -> bool:
        """Write where nothing is; False where something was there already."""
        import obstore

        try:
            obstore.put(self._store, path, data, mode="create", use_multipart=False)
        except obstore.exceptions.AlreadyExistsError:
            return False
        return True

    def put_file(self, path: str, source: Path) -> None:
        """Write a file whose name in the store is its digest, unless it is there."""
        import obstore

        if self.size(path) != source.stat().st_size:
            obstore.put(self._store, path, source)

    def read(self, path: str) -> bytes | None:
        """The bytes; None where there are none."""
        import obstore

        try:
            return bytes(obstore.get(self._store, path).bytes())
        except FileNotFoundError:
            return None

    def size(self, path: str) -> int | None:
        """Bytes of what is there; None where nothing is."""
        import obstore

        try:
            return int(obstore.head(self._store, path)["size"])
        except FileNotFoundError:
            return None

    def fetch(self, path: str, target: Path, sha256: str) -> None:
        """Write what is there to a new file, compared with its digest.

        Raises:
            FileNotFoundError: nothing is there.
            StoreDamaged: it is not what the digest says; no file is left.
        """
        import obstore

        found = hashlib.sha256()
        with target.open("xb") as file:
            for chunk in obstore.get(self._store, path).stream(min_chunk_size=CHUNK_BYTES):
                found.update(chunk)
                file.write(chunk)
        if found.hexdigest() != sha256:
            target.unlink()
            raise StoreDamaged(f"{path} has the sha256 {found.hexdigest()}")

    def paths(self, prefix: str) -> Iterator[str]:
        """Every path below a prefix."""
        import obstore

        for rows in obstore.list(self._store, prefix):
            yield from (row["path"] for row in rows)

    def remove_below(self, prefix: str) -> None:
        """Remove everything below a prefix; what another process removes meanwhile is passed over."""
        import obstore

        for path in list(self.paths(prefix)):
            try:
                obstore.delete(self._store, path)
            except FileNotFoundError:
                continue


def open_store(url: str) -> ObjectStore:
    """The store that a setting names; credentials and the endpoint of S3 come from AWS's variables of the environment.

    Raises:
        PunnetError: SERVER_START_FAILED where obstore is missing; REQUEST_INVALID for a URL that can't be used.
    """
    parts = urlsplit(url)
    try:
        import obstore
        from obstore.store import LocalStore, S3Store
    except ImportError:
        raise make_error("SERVER_START_FAILED", "This Python lacks obstore, which --store asks for.", INSTALL) from None
    if parts.scheme == "file" and not parts.netloc and Path(parts.path).is_dir():
        return ObjectStore(LocalStore(parts.path, automatic_cleanup=True))
    if parts.scheme != "s3" or not parts.netloc:
        raise make_error(
            "REQUEST_INVALID",
            f"--store is {url!r}.",
            "Say s3://BUCKET/PREFIX, or file:///FOLDER for a folder that is there on every node.",
        )
    try:
        return ObjectStore(S3Store.from_url(url))
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise make_error(
            "REQUEST_INVALID", f"--store {url!r} can't be used: {error}.", "See docs/cluster.md."
        ) from error
