"""A Node client that has nothing but the .proto files: the contract is enough."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from punnet import __version__
from punnet.archive import pack_labelled
from tests.conftest import SmallJob
from tests.service.running_server import RunningServer, image_tar

ROOT = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("node_client.mjs")
NOT_FOUND = 5  # of google.rpc.Code


@pytest.fixture(scope="module")
def said(small_job: SmallJob) -> Iterator[dict[str, Any]]:
    """What the Node client prints after a whole run."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    if not (ROOT / "node_modules" / "@grpc" / "grpc-js").is_dir():
        pytest.skip("node_modules is not installed: npm install")
    folder = Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    running = RunningServer(folder).start()
    try:
        pack_labelled(small_job.images, folder / "images.tar")
        (folder / "pool.tar").write_bytes(image_tar(300))  # more than one chunk
        done = subprocess.run(
            [node, CLIENT, f"unix:{folder / 's'}", small_job.teacher, folder / "images.tar", folder / "pool.tar"],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout)
    finally:
        running.close()
        shutil.rmtree(folder)


def test_crc32c_written_from_the_standard_is_the_servers(said: dict[str, Any]) -> None:
    assert said["crc_check"] == 0xE3069283


def test_blob_that_is_there_is_not_sent_again(said: dict[str, Any]) -> None:
    assert said["sent_again"] == 0


def test_pool_is_made_from_node(said: dict[str, Any]) -> None:
    assert said["pool"] == {"name": "from-node", "images": 300}
    assert said["ingest"]["state"] == "JOB_STATE_SUCCEEDED"


def test_request_id_makes_the_second_request_the_first_ones_job(said: dict[str, Any]) -> None:
    assert said["same_job"] is True


def test_watch_numbers_events_without_gaps(said: dict[str, Any]) -> None:
    for watched in (said["ingest"], said["validation"]):
        assert watched["seqs"] == list(range(1, len(watched["seqs"]) + 1))


def test_validation_ends_with_the_inspection(said: dict[str, Any]) -> None:
    assert said["job"]["state"] == "JOB_STATE_SUCCEEDED", said["job"]["error"]
    assert "inspection.json" in said["job"]["artifacts"]
    assert said["inspection"]["layout"] == "NCHW"


def test_refusal_has_code_text_and_details(said: dict[str, Any]) -> None:
    assert said["refusal"]["code"] == NOT_FOUND
    assert said["refusal"]["has_status"] == 1


def test_capabilities_name_the_version(said: dict[str, Any]) -> None:
    assert said["version"] == __version__
