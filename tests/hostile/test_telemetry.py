"""onnxruntime, which reports home unless told not to before its import, leaves no trace of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from punnet import Client
from tests.conftest import SmallJob
from tests.service.running_server import RunningServer


@pytest.mark.slow  # a whole intake
def test_no_cache_is_written_by_a_job_that_runs_models(
    folder: Path, small_job: SmallJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = folder / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    server = RunningServer(folder).start()
    try:
        with Client(server.address) as client:
            client.inspect(small_job.teacher, small_job.images).wait()
    finally:
        server.close()
    assert list(home.rglob("*")) == []
    words = ("deviceid", "onnxruntime.db", "DeveloperTools", ".onnxruntime")
    assert [path for path in server.data.rglob("*") if any(word in path.name for word in words)] == []
