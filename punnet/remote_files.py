"""Files behind a URL that fsspec understands (s3://, gs://, https://, hf://, ...), fetched with the user's own rights.

The appliance takes no URLs: who runs the command fetches, and uploads what was fetched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from punnet.errors import make_error

URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file; `name` is its path below the URL, safe as a member's name."""

    name: str
    path: str
    system: Any  # fsspec.AbstractFileSystem, which has no types

    @property
    def suffix(self) -> str:
        """Of its name, with the dot."""
        return PurePosixPath(self.name).suffix

    def fetch(self, target: Path) -> Path:
        """Write it to a file, and return that.

        Raises:
            InvalidPool: POOL_INVALID where it can't be fetched.
        """
        try:
            self.system.get_file(self.path, str(target))
        except OSError as error:
            raise _failed(self.path, error) from error
        return target

    def read(self) -> bytes:
        """Its bytes; raises as `fetch` does."""
        try:
            data: bytes = self.system.cat_file(self.path)
        except OSError as error:
            raise _failed(self.path, error) from error
        return data


def is_url(source: Path | str) -> bool:
    """Whether a source is a URL and no path."""
    return isinstance(source, str) and URL.match(source) is not None


def remote_files(url: str) -> list[RemoteFile]:
    """Visible files at or below a URL, by path.

    Raises:
        InvalidPool: POOL_INVALID where fsspec or its part for this protocol is missing, or the URL can't be listed.
    """
    try:
        import fsspec.core
    except ImportError as error:
        raise make_error(
            "POOL_INVALID",
            f"{url} is a URL, and fsspec is not installed.",
            'Install it: pip install "punnet[remote]", and the package that fsspec needs for the protocol.',
        ) from error
    try:
        system, root = fsspec.core.url_to_fs(url)
        paths = [root] if system.isfile(root) else sorted(system.find(root))
    except (OSError, ValueError, ImportError) as error:
        raise _failed(url, error) from error
    files = [RemoteFile(name=_name(path, root), path=path, system=system) for path in paths]
    return [f for f in files if not any(part.startswith(".") for part in PurePosixPath(f.name).parts)]


def _name(path: str, root: str) -> str:
    """The path below the root, or the last part of a file's own."""
    below = path.removeprefix(root.rstrip("/")).strip("/")
    return below or PurePosixPath(path).name


def _failed(url: str, error: Exception) -> Exception:
    return make_error(
        "POOL_INVALID",
        f"{url} can't be fetched: {type(error).__name__}: {error}",
        "Look at the URL, the network and the credentials of its protocol.",
        {"url": url},
    )
