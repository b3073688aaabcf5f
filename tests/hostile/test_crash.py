"""Models that end the process that runs them, never finish, or score no numbers: only their own job fails."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from punnet.v1 import catalogue_pb2, job_pb2, options_pb2
from tests.hostile.confined_intake import take_in
from tests.hostile.seed_models import core, labelled_tar, model
from tests.service.running_server import RunningServer, resident_bytes, stage_children

node = helper.make_node
HANG_SECONDS = 4.0
RESIDENT_GROWTH_BYTES = 50 << 20


def with_addend(nodes: list[Any], constants: dict[str, Any]) -> bytes:
    """A teacher to whose scores the tensor v is added, times nothing."""
    around, weights = core("x", "scores")
    end = [
        node("Cast", ["v"], ["v_float"], to=1),
        node("ReduceMax", ["v_float"], ["peak"], keepdims=0),
        node("Mul", ["peak", "nothing"], ["none"]),
        node("Add", ["scores", "none"], ["y"]),
    ]
    made = model([*around, *nodes, *end], weights | constants | {"nothing": np.float32(0)})
    data: bytes = made.SerializeToString()
    return data


def divided(operator: str, dtype: type[Any], divisor: int) -> bytes:
    """The least integer divided: by -1 its quotient is no integer of its type, and the processor traps."""
    least = np.array([np.iinfo(dtype).min], dtype)
    return with_addend([node(operator, ["least", "by"], ["v"])], {"least": least, "by": np.array([divisor], dtype)})


def products(count: int) -> bytes:
    """A chain of matrix products, some 10 ms each."""
    names = ["square", *(f"p{index}" for index in range(count - 1)), "v"]
    pairs = itertools.pairwise(names)
    return with_addend(
        [node("MatMul", [a, "square"], [b]) for a, b in pairs], {"square": np.eye(512, dtype=np.float32)}
    )


def weighted(value: float) -> bytes:
    around, weights = core("x", "y")
    weights["c"][:] = value
    data: bytes = model(around, weights).SerializeToString()
    return data


@pytest.mark.parametrize("operator", ["Div", "Mod"])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_division_that_traps_fails_its_own_job_and_its_twin_runs(
    operator: str, dtype: type[Any], tmp_path: Path
) -> None:
    hostile = take_in(tmp_path, divided(operator, dtype, -1))
    # Some builds of onnxruntime guard the remainder; a clean refusal or a clean run is as good.
    assert hostile.code == "MODEL_CRASHED" or operator == "Mod"
    assert take_in(tmp_path, divided(operator, dtype, 1)).code == ""


def test_division_by_zero_ends_its_own_job_at_most(tmp_path: Path) -> None:
    assert take_in(tmp_path, divided("Div", np.int64, 0)).code in ("MODEL_CRASHED", "MODEL_BAD_GRAPH")


def test_model_that_does_not_end_is_ended(tmp_path: Path) -> None:
    hostile = take_in(tmp_path, products(15_000), wall_seconds=HANG_SECONDS)
    assert (hostile.code, hostile.outcome.timed_out) == ("MODEL_TIMEOUT", True)
    assert take_in(tmp_path, products(3)).code == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    assert take_in(tmp_path, weighted(value)).code == "MODEL_NONFINITE"


def test_scores_that_are_numbers_are_taken(tmp_path: Path) -> None:
    assert take_in(tmp_path, weighted(0.5)).code == ""


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("s")).start()
    yield running
    running.close()


def inspect(server: RunningServer, data: bytes, images: str) -> job_pb2.Job:
    request = catalogue_pb2.InspectTeacherRequest(
        teacher=options_pb2.Teacher(sha256=server.upload(data), display_name="teacher.onnx"),
        images=options_pb2.LabelledImages(tar=options_pb2.TarBlob(sha256=images)),
    )
    return server.ended(server.catalogue.InspectTeacher(request).job.id)


def test_server_outlives_hostile_models_and_the_next_job_works(server: RunningServer) -> None:
    images = server.upload(labelled_tar())
    assert images == hashlib.sha256(labelled_tar()).hexdigest()
    before = resident_bytes(server.pid)
    for data, code in ((divided("Div", np.int32, -1), "MODEL_CRASHED"), (weighted(float("nan")), "MODEL_NONFINITE")):
        failed = inspect(server, data, images)
        assert (failed.error.reason, failed.stages[0].attempt) == (code, 1)
    assert inspect(server, divided("Div", np.int32, 1), images).state == job_pb2.JOB_STATE_SUCCEEDED
    assert stage_children(server) == []
    assert resident_bytes(server.pid) - before < RESIDENT_GROWTH_BYTES
    assert not [name for name in files_below(server.data) if "out.partial" in name or "/tmp/" in name]
