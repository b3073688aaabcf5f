"""What a user's images leave behind once their job is deleted and the garbage is collected: nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from punnet import Client
from tests.conftest import SmallJob
from tests.service.running_server import RunningServer

SLICE_BYTES = 32


def slices(images: Path) -> Iterator[bytes]:
    """Parts that only these images have: of each file, and of each one's pixels as arrays hold them."""
    for path in sorted(images.rglob("*.*")):
        data = path.read_bytes()
        yield data[len(data) // 2 :][:SLICE_BYTES]
        pixels = np.asarray(Image.open(path).convert("RGB")).tobytes()
        yield pixels[len(pixels) // 2 :][:SLICE_BYTES]


def files_with(folder: Path, parts: list[bytes]) -> list[str]:
    contents = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}
    return [str(path.relative_to(folder)) for path, data in contents.items() if any(part in data for part in parts)]


def test_no_byte_of_an_erased_jobs_images_is_found_in_the_data_folder(
    server: RunningServer, small_job: SmallJob
) -> None:
    parts = [part for part in slices(Path(small_job.images)) if len(set(part)) > 4]
    assert len(parts) > 10
    with Client(f"unix:{server.folder / 's'}") as client:
        job = client.inspect(small_job.teacher, small_job.images)
        job.wait()
        assert files_with(server.data, parts)
        client.delete(job.id)
        command = ["-c", "from punnet.cli import main; main()", "gc", "--apply", "--json"]
        address = f"unix:{server.folder / 's'}"
        ran = subprocess.run([sys.executable, *command, "--server", address], capture_output=True, check=True)
        assert json.loads(ran.stdout)["applied"] is True
        assert files_with(server.data, parts) == []
        assert job.id.encode() not in (server.data / "punnet.sqlite3").read_bytes()
