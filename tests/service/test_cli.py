"""The command `punnet` against a real server process: documents, exit statuses, Ctrl-C."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from punnet import Client
from punnet.transfer import file_sha256
from tests.conftest import CLASSES, SmallJob
from tests.service.running_server import RunningServer, image_tar, until

COMMAND = (sys.executable, "-c", "from punnet.cli import main; main()")


def environment(server: RunningServer) -> dict[str, str]:
    return {**os.environ, "PUNNET_SERVER": f"unix:{server.folder / 's'}", "COLUMNS": "200"}


def punnet(server: RunningServer, *args: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, args)],
        env=environment(server),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def document(done: subprocess.CompletedProcess[str], status: int = 0) -> Any:
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pool(shared_server: RunningServer) -> str:
    tar = shared_server.folder / "pool.tar"
    tar.write_bytes(image_tar(40))
    made = document(punnet(shared_server, "pool", "create", "tiny", tar, "--json"))
    assert (made["name"], made["images"], made["bad_images"]) == ("tiny", 40, 0)
    return "tiny"


def test_pools_are_listed_and_shown(shared_server: RunningServer, pool: str) -> None:
    listed = document(punnet(shared_server, "pool", "list", "--json"))
    assert pool in [p["name"] for p in listed["pools"]]
    shown = punnet(shared_server, "pool", "info", pool)
    assert "40" in shown.stdout


def test_pool_is_appended_to_shown_verified_and_deleted(shared_server: RunningServer, folder: Path) -> None:
    first, second = folder / "first.tar", folder / "second.tar"
    first.write_bytes(image_tar(6))
    second.write_bytes(image_tar(9))
    document(punnet(shared_server, "pool", "create", "verbs", first, "--short-side", "16", "--json"))
    appended = document(punnet(shared_server, "pool", "append", "verbs", second, "--json"))
    assert (appended["images"], appended["shards"], appended["duplicates"]) == (15, 2, 6)
    assert appended["shrink"] == {"short_side": 16, "quality": 90}
    shown = document(punnet(shared_server, "pool", "info", "verbs", "--html", folder / "pool.html", "--json"))
    assert shown["short_side_pixels"] == [{"least": 16, "below": 32, "count": 15}]
    assert (folder / "pool.html").read_text().count("<img") == 15
    assert document(punnet(shared_server, "pool", "verify", "verbs", "--json"))["verified"] is True
    shard = shared_server.data / "pools" / "local" / "verbs" / appended["sha256"] / "shard-00001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    damaged = document(punnet(shared_server, "pool", "verify", "verbs", "--json"), 10)
    assert damaged["error"]["code"] == "POOL_DAMAGED"
    assert "shard-00001.tar" in damaged["error"]["message"]
    assert document(punnet(shared_server, "pool", "delete", "verbs", "--json")) == {"name": "verbs"}
    assert document(punnet(shared_server, "pool", "info", "verbs", "--json"), 5)["error"]["code"] == "POOL_NOT_FOUND"


def test_inspect_prints_the_artifact_as_it_is(shared_server: RunningServer, small_job: SmallJob, folder: Path) -> None:
    found = document(
        punnet(shared_server, "inspect", small_job.teacher, "--images", small_job.images, "--seed", "41", "--json")
    )
    keys = {"layout", "channels", "scale", "mean", "std", "dtype", "size", "batch", "output", "classes", "class_order"}
    keys |= {"accuracy", "accuracy_low", "accuracy_high", "images", "warnings"}
    assert keys <= found.keys()
    newest = document(punnet(shared_server, "jobs", "--limit", "1", "--json"))["jobs"][0]
    assert newest["kind"] == "INSPECT"
    fetched = document(punnet(shared_server, "download", newest["job"][:8], "--out", folder / "out", "--json"))
    assert found == json.loads((folder / "out" / "inspection.json").read_text())
    for artifact in fetched["artifacts"]:
        assert file_sha256(folder / "out" / artifact["path"]) == artifact["sha256"]


def test_inspect_shows_a_table_and_the_hypotheses(shared_server: RunningServer, small_job: SmallJob) -> None:
    shown = punnet(shared_server, "inspect", small_job.teacher, "--images", small_job.images)
    assert shown.returncode == 0
    assert "NCHW" in shown.stdout
    assert "What was tried, best first" in shown.stdout
    assert "intake: " in shown.stderr  # progress is not among the results


def test_inspect_writes_a_page_beside_its_document(
    shared_server: RunningServer, small_job: SmallJob, folder: Path
) -> None:
    page, names = folder / "page.html", folder / "names.txt"
    names.write_text("\n".join(CLASSES) + "\n")
    found = document(
        punnet(
            *(shared_server, "inspect", small_job.teacher, "--images", small_job.images),
            *("--html", page, "--tap", "r2", "--tap", "c1", "--json", "--class-names", names),
        )
    )
    assert found["class_names"] == list(CLASSES)
    text = page.read_text()
    assert "default-src 'none'" in text
    assert text.count("data:image/png") >= 24
    assert f"{100 * found['accuracy']:.1f} % of {found['images']} labelled images" in text
    assert [tap["source"] for tap in found["taps"]] == ["c1:NCHW", "r2:NCHW"]
    assert found["taps_stated"]
    assert {"c1", "r1", "c2", "r2", "p", "f"} == {row["name"] for row in found["tap_candidates"]}
    assert found["operators"] == {"Conv": 2, "Relu": 2, "Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1}
    assert found["activation_bytes"] == 4 * (2 * 12 * 8 * 8)  # the first convolution's map and its Relu
    assert [row["batch"] for row in found["latencies"]] == [1, 32]
    assert all(0 < row["p50_ms"] <= row["p90_ms"] for row in found["latencies"])
    asked = importlib.util.find_spec("tensorrt_rtx") is not None
    assert found["tensorrt"]["unchecked"] == ("" if asked else "no TensorRT parser installed")  # confined as it is


def test_tap_that_is_not_there_exits_2_with_the_candidates(shared_server: RunningServer, small_job: SmallJob) -> None:
    done = punnet(
        *(shared_server, "inspect", small_job.teacher, "--images", small_job.images, "--tap", "y", "--json"),
    )
    error = document(done, status=2)["error"]
    assert (error["code"], error["details"]["stage"]) == ("TAP_INVALID", "intake")
    assert error["details"]["candidates"] == "c1, r1, c2, r2, p, f"
    assert "scores" in error["message"]


def test_page_without_a_folder_starts_no_job(shared_server: RunningServer, small_job: SmallJob, folder: Path) -> None:
    before = document(punnet(shared_server, "jobs", "--json"))["jobs"]
    done = punnet(
        *(shared_server, "inspect", small_job.teacher, "--images", small_job.images),
        *("--html", folder / "nowhere" / "page.html"),
    )
    assert done.returncode == 2
    assert document(punnet(shared_server, "jobs", "--json"))["jobs"] == before


def test_validation_prints_the_contract_of_compress(
    shared_server: RunningServer, small_job: SmallJob, pool: str, folder: Path
) -> None:
    done = document(
        punnet(
            *(shared_server, "compress", small_job.teacher, "--images", small_job.images, "--pool", pool),
            *("--validate-only", "--layout", "nchw", "--out", folder / "out", "--json"),
        )
    )
    assert done.keys() == {"job", "state", "artifacts", "report"}
    assert done["state"] == "SUCCEEDED"
    assert done["report"] is None
    assert all((folder / "out" / a["path"]).stat().st_size == a["size"] for a in done["artifacts"])


def test_a_job_again_with_another_option_reuses_the_stages_that_do_not_read_it(
    shared_server: RunningServer, small_job: SmallJob, pool: str, folder: Path
) -> None:
    first = document(
        punnet(
            *(shared_server, "compress", small_job.teacher, "--images", small_job.images, "--pool", pool),
            *("--validate-only", "--layout", "nchw", "--out", folder / "out", "--json"),
        )
    )
    again = document(
        punnet(
            *(shared_server, "compress", "--from", first["job"][:12], "--validate-only", "--out", folder / "again"),
            *("--set", "steps=77", "--set", "student=cifar_resnet8", "--json"),
        )
    )
    assert again["job"] != first["job"]
    (job,) = [j for j in document(punnet(shared_server, "jobs", "--json"))["jobs"] if j["job"] == again["job"]]
    assert {stage["state"] for stage in job["stages"]} == {"REUSED"}
    assert [a["sha256"] for a in again["artifacts"]] == [a["sha256"] for a in first["artifacts"]]


@pytest.mark.parametrize(
    "args", [("compress", "--from", "0" * 32, "--detach"), ("compress", "--from", "0" * 32, "--detach", "--set", "x=1")]
)
def test_a_job_again_that_is_not_there_or_a_wrong_option_exits_2(
    shared_server: RunningServer, args: tuple[str, ...]
) -> None:
    assert document(punnet(shared_server, *args, "--json"), 2)["error"]["code"] == "REQUEST_INVALID"


def test_path_in_place_of_a_pool_says_how_to_make_one(
    shared_server: RunningServer, small_job: SmallJob, folder: Path
) -> None:
    done = punnet(
        *(shared_server, "compress", small_job.teacher, "--images", small_job.images),
        *("--pool", small_job.pool_tar, "--out", folder),
    )
    assert done.returncode == 5
    assert f"punnet pool create NAME {small_job.pool_tar}" in done.stderr


def test_unknown_pool_and_job_exit_5_with_a_document(
    shared_server: RunningServer, small_job: SmallJob, folder: Path
) -> None:
    done = punnet(
        *(shared_server, "compress", small_job.teacher, "--images", small_job.images),
        *("--pool", "nowhere", "--out", folder, "--json"),
    )
    assert document(done, 5)["error"]["code"] == "POOL_NOT_FOUND"
    assert document(punnet(shared_server, "watch", "0" * 32, "--json"), 5)["error"]["code"] == "JOB_NOT_FOUND"


def test_bad_teacher_exits_3_and_names_the_stage(
    shared_server: RunningServer, small_job: SmallJob, folder: Path
) -> None:
    (folder / "bad.onnx").write_bytes(b"\x08\x08no model")
    done = punnet(shared_server, "inspect", folder / "bad.onnx", "--images", small_job.images, "--json")
    error = document(done, 3)["error"]
    assert error["code"].startswith("MODEL_")
    assert error["details"]["stage"] == "intake"
    job = error["details"]["job"]
    for asked in (("watch", job), ("download", job, "--out", folder / "out")):
        assert document(punnet(shared_server, *asked, "--json"), 3)["error"]["code"] == error["code"]


def test_file_in_the_place_of_the_download_folder_is_named(
    shared_server: RunningServer, pool: str, folder: Path
) -> None:
    (folder / "taken").write_text("a letter")
    jobs = document(punnet(shared_server, "jobs", "--json"))["jobs"]
    ingest = next(job["job"] for job in jobs if job["kind"] == "INGEST")
    for out in (folder / "taken", folder / "taken" / "below"):
        done = punnet(shared_server, "download", ingest, "--out", out, "--json")
        assert document(done, 2)["error"]["code"] == "REQUEST_INVALID"
    assert (folder / "taken").read_text() == "a letter"


def test_compression_into_a_file_is_refused_before_it_starts(
    shared_server: RunningServer, small_job: SmallJob, pool: str, folder: Path
) -> None:
    (folder / "taken").write_text("a letter")
    before = document(punnet(shared_server, "jobs", "--json"))["jobs"]
    done = punnet(
        *(shared_server, "compress", small_job.teacher, "--images", small_job.images, "--pool", pool),
        *("--out", folder / "taken" / "below", "--json"),
    )
    assert document(done, 2)["error"]["code"] == "REQUEST_INVALID"
    assert document(punnet(shared_server, "jobs", "--json"))["jobs"] == before


def test_job_that_has_ended_is_not_shown_again(shared_server: RunningServer, pool: str) -> None:
    jobs = document(punnet(shared_server, "jobs", "--json"))["jobs"]
    ingest = next(job["job"] for job in jobs if job["kind"] == "INGEST" and job["state"] == "SUCCEEDED")
    done = punnet(shared_server, "watch", ingest)
    assert done.stdout.startswith("SUCCEEDED")
    assert done.stderr == ""
    assert ingest[:12] in punnet(shared_server, "jobs").stdout


def test_misspelt_choice_exits_2_with_the_choices(
    shared_server: RunningServer, small_job: SmallJob, pool: str, folder: Path
) -> None:
    done = punnet(
        *(shared_server, "compress", small_job.teacher, "--images", small_job.images, "--pool", pool),
        *("--rule", "best", "--out", folder),
    )
    assert done.returncode == 2
    assert "balanced, top, threshold" in done.stderr


def test_detached_job_is_watched_cancelled_and_deleted(
    shared_server: RunningServer, small_job: SmallJob, pool: str
) -> None:
    started = document(
        punnet(
            *(shared_server, "compress", small_job.teacher, "--images", small_job.images, "--pool", pool),
            *("--detach", "--json", "--seed", "42"),
        )
    )
    job = started["job"]
    assert started["artifacts"] == []
    assert document(punnet(shared_server, "cancel", job, "--json"))["state"] in ("CANCELLING", "CANCELLED")
    assert document(punnet(shared_server, "watch", job, "--json"), 12)["error"]["code"] == "JOB_CANCELLED"
    assert document(punnet(shared_server, "delete", job, "--json")) == {"job": job}
    assert document(punnet(shared_server, "watch", job, "--json"), 5)["error"]["code"] == "JOB_NOT_FOUND"


def test_doctor_reads_the_server(shared_server: RunningServer) -> None:
    found = document(punnet(shared_server, "doctor", "--json"))
    assert found["problems"] == []
    assert found["server"]["devices"]
    assert found["packages"]["grpcio"]


def test_doctor_exits_1_where_nothing_answers(shared_server: RunningServer, folder: Path) -> None:
    found = document(punnet(shared_server, "doctor", "--server", f"unix:{folder}/none", "--json"), 1)
    assert "No Punnet server answers" in found["problems"][0]


def test_ctrl_c_leaves_the_job_running_and_says_how_to_go_on(server: RunningServer, slow_tar: bytes) -> None:
    tar = server.folder / "slow.tar"
    tar.write_bytes(slow_tar)
    # Background jobs of a shell ignore SIGINT, and so would everything that they start, this suite among it.
    heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    command = subprocess.Popen(
        [*COMMAND[:2], heeding + COMMAND[2], "pool", "create", "slow", str(tar)],
        env=environment(server),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with Client(f"unix:{server.folder / 's'}") as client:
        assert command.stderr is not None
        # The job may run before its id has come back: only what the command says tells that it knows the job.
        said = ""
        while "running" not in said:
            said += command.stderr.readline()
            assert command.poll() is None, said
        server.pause_stages()
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=30)
        (job,) = client.jobs()
        assert command.returncode == 130, err
        assert out == ""
        assert f"punnet watch {job.id}" in err
        assert f"punnet cancel {job.id}" in err
        assert "Traceback" not in err
        queued = client.create_pool("behind", [tar])
        behind = subprocess.Popen([*COMMAND, "watch", queued.id], env=environment(server), stderr=subprocess.PIPE)
        assert behind.stderr is not None
        assert behind.stderr.readline() == b"queued behind 1 other job\n"
        server.resume_stages()
        behind.communicate(timeout=60)
        client.wait(job.id)


def test_serve_serves_a_data_folder(folder: Path) -> None:
    serving = subprocess.Popen(
        [*COMMAND, "serve", "--data", str(folder / "data"), "--socket", str(folder / "s")], stderr=subprocess.PIPE
    )
    try:
        until((folder / "data" / "server.json").exists)
        with Client(f"unix:{folder / 's'}") as client:
            assert client.jobs() == []
    finally:
        serving.send_signal(signal.SIGTERM)
        serving.communicate(timeout=20)
    assert serving.returncode == 0


@pytest.mark.slow
def test_whole_compression_writes_the_report_and_its_document(
    shared_server: RunningServer, small_job: SmallJob, folder: Path
) -> None:
    document(punnet(shared_server, "pool", "create", "whole", small_job.pool_tar, "--json"))
    done = document(
        punnet(
            *(shared_server, "compress", small_job.teacher, "--images", small_job.images, "--pool", "whole"),
            *("--steps", "60", "--target", "cpu", "--student", "cifar_resnet8", "--out", folder / "out", "--json"),
            timeout=900,
        )
    )
    report = json.loads(Path(done["report"]).read_text())
    assert report["student"]["name"] == "cifar_resnet8"
    student = next(a for a in done["artifacts"] if a["path"] == "student.onnx")
    assert file_sha256(folder / "out" / "student.onnx") == student["sha256"]
    shown = punnet(
        *(shared_server, "compress", small_job.teacher, "--images", small_job.images, "--pool", "whole"),
        *("--steps", "60", "--target", "cpu", "--student", "cifar_resnet8", "--out", folder / "again"),
        timeout=900,
    )
    assert "reused" in shown.stderr  # the same stages with the same inputs run once
    assert "cifar_resnet8" in shown.stdout
