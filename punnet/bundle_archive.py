"""Unpacks a bundle's zip, whose names are the sender's choice and whose content must fit."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path

from punnet.errors import make_error
from punnet.transfer import artifact_path

BYTES = 8 << 30
ENTRIES = 1000


def unpack(bundle: Path, folder: Path) -> Path:
    """Unpack below `folder`; the one folder that the zip holds.

    Raises:
        IntegrityError: ARTIFACT_CORRUPT for no zip, a name that leaves the folder, a link, or too much content.
    """
    try:
        with zipfile.ZipFile(bundle) as archive:
            entries = archive.infolist()
            tops = {entry.filename.partition("/")[0] for entry in entries}
            links = any(stat.S_ISLNK(entry.external_attr >> 16) for entry in entries)
            if links or len(tops) != 1 or len(entries) > ENTRIES or sum(e.file_size for e in entries) > BYTES:
                raise _corrupt(bundle, "it holds links, several folders, or too much")
            for entry in entries:
                target = artifact_path(folder, entry.filename)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(entry))
    except (zipfile.BadZipFile, EOFError) as error:
        raise _corrupt(bundle, str(error)) from error
    return folder / tops.pop()


def _corrupt(bundle: Path, why: str) -> Exception:
    return make_error(
        "ARTIFACT_CORRUPT",
        f"{bundle.name} is no bundle: {why}.",
        "Ask for the build again; if that repeats, do not trust this server.",
        {"file": bundle.name},
    )
