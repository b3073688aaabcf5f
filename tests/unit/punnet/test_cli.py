"""The command line where no server is needed: parsing, help, documents, exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from punnet import __version__, cli_doctor
from punnet.cli import app, main
from punnet.cli_compress import print_forecast, print_plan, print_report
from punnet.cli_doctor import package_problems
from punnet.cli_options import TRAINING, files, lines, numbers, training
from punnet.cli_output import bytes_text, percent_text, print_error, seconds_text
from punnet.cli_progress import figures
from punnet.cli_students import within_limits
from punnet.errors import InvalidRequest, make_error
from punnet.options import CompressOptions
from punnet.v1 import catalogue_pb2, job_pb2

RUNNER = CliRunner()
ROOT = Path(__file__).resolve().parents[3]
COMMANDS = [
    *(["serve", "compress", "plan", "inspect", "jobs", "watch", "cancel", "delete", "download", "students", "doctor"]),
    *(f"pool {verb}" for verb in ("create", "append", "verify", "info", "list", "delete")),
]


def punnet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["punnet", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_version_is_the_distributions() -> None:
    assert RUNNER.invoke(app, ["--version"]).stdout.strip() == __version__


def test_every_command_is_there() -> None:
    listed = RUNNER.invoke(app, ["--help"]).stdout + RUNNER.invoke(app, ["pool", "--help"]).stdout
    assert all(command.split()[-1] in listed for command in COMMANDS)


def test_unknown_option_exits_2_without_a_trace() -> None:
    result = RUNNER.invoke(app, ["compress", "--no-such-option"])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("args", [["compress", "t.onnx"], ["watch"], ["download", "j"], ["pool", "create", "p"]])
def test_what_is_missing_exits_2(args: list[str]) -> None:
    assert RUNNER.invoke(app, args).exit_code == 2


def test_compress_offers_every_keyword_of_the_client() -> None:
    command = typer.main.get_command(app)
    offered = {p.name for p in command.commands["compress"].params}  # type: ignore[attr-defined]
    assert set(CompressOptions.__annotations__) - offered - set(TRAINING) == {"loss", "runtimes"}


def test_variants_that_are_no_onnx_files_are_runtimes() -> None:
    assert files(["fp32", "openvino", "int8-cpu"]) == {"variants": ["fp32", "int8-cpu"], "runtimes": ["openvino"]}
    assert files(["executorch"]) == {"runtimes": ["executorch"]}
    assert files([]) == {}


@pytest.mark.parametrize("command", ["compress", "plan"])
def test_minutes_of_training_have_two_names(command: str) -> None:
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    assert [p.opts for p in parameters if p.name == "minutes"] == [["--max-minutes", "--minutes"]]


def test_training_settings_are_read_by_their_kind() -> None:
    settings = ["loss.dkd=1", "loss.kl=0.5", "views=4", "compiled=true", "draws=balanced", "mixup=0.2"]
    assert training(settings) == {
        "loss": {"dkd": 1.0, "kl": 0.5}, "views": 4, "compiled": True, "draws": "balanced", "mixup": 0.2
    }  # fmt: skip


@pytest.mark.parametrize("setting", ["speed=9", "loss.mse=1", "views=many", "mixup"])
def test_training_settings_that_make_no_sense_are_refused(setting: str) -> None:
    with pytest.raises(InvalidRequest, match=setting):
        training([setting])


def test_class_names_are_the_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffcat\r\nsea lion \r\ngrößer dog\n\n".encode())
    assert lines(str(file)) == ["cat", "sea lion", "größer dog"]
    assert lines(None) is None


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", "Line 1"), (b"cat\n\ndog", "Line 2"), (b"caf\xe9", "no UTF-8 at byte 3"), (None, "No such")],
)
def test_file_without_class_names_is_refused(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "names.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidRequest, match=why) as caught:
        app(["inspect", "t.onnx", "--images", "i", "--class-names", str(file)], standalone_mode=False)
    assert "one name a line" in caught.value.remedy


def test_neither_out_nor_detach_is_an_error_with_its_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = punnet(capsys, monkeypatch, "compress", "t.onnx", "--images", "i", "--pool", "p", "--json")
    assert status == 2
    assert json.loads(out)["error"]["code"] == "REQUEST_INVALID"
    assert "--out" in err
    assert "Traceback" not in err


def test_unreachable_server_exits_13_with_a_remedy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    status, out, err = punnet(capsys, monkeypatch, "jobs", "--server", f"unix:{tmp_path}/nothing.sock")
    assert (status, out) == (13, "")
    assert "No Punnet server answers" in err
    assert "UNAVAILABLE" in err


def test_error_says_stage_message_remedy_and_code(capsys: pytest.CaptureFixture[str]) -> None:
    error = make_error("TRAINING_DIVERGED", "Loss [is] NaN.", "Lower it.", {"stage": "distillation"})
    print_error(error, as_json=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split("\n")[:3] == ["error (stage distillation): Loss [is] NaN.", "Lower it.", "TRAINING_DIVERGED"]


def test_serve_hands_its_options_to_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _path, argv: calls.append(argv))
    monkeypatch.setenv("PUNNET_DATA", "/data")
    for args in (["--listen", "127.0.0.1:1"], ["--data=/x", "--help"]):
        assert RUNNER.invoke(app, ["serve", *args]).exit_code == 0
    start = [sys.executable, "-I", "-m", "server"]
    assert calls == [[*start, "--data", "/data", "--listen", "127.0.0.1:1"], [*start, "--data=/x", "--help"]]


def test_client_is_up_fast_and_needs_no_engine() -> None:
    unwanted = {"numpy", "torch", "onnx", "onnxruntime", "rich", "typer", "server", "pu_engine"}
    code = f"import sys; from punnet import Client, AsyncClient; print(sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"


def test_both_runtimes_at_once_are_a_problem() -> None:
    both = {"onnxruntime": "1", "onnxruntime-gpu": "1"}
    assert "onnxruntime-gpu" in package_problems(both, private=False)[0]
    assert package_problems({"onnxruntime": "1"}, private=False) == []


def test_missing_engine_is_a_problem_of_a_private_server_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_doctor, "missing_packages", lambda: ["torch"])
    assert "torch" in package_problems({}, private=True)[0]
    assert package_problems({}, private=False) == []


@pytest.mark.parametrize(("text", "values"), [("1", [1.0]), ("0.5,-2,3e-1", [0.5, -2.0, 0.3]), (None, None)])
def test_numbers_are_separated_by_commas(text: str | None, values: list[float] | None) -> None:
    assert numbers(text) == values


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(typer.BadParameter):
        numbers("1;2")


def test_figures_read_like_a_person_would_say_them() -> None:
    progress = job_pb2.Progress(
        done=1200, total=1500, unit="steps", rate=41.24, eta_seconds=7.3, metrics={"loss": 1.31234}
    )
    assert figures(progress) == "1200/1500 steps  41.2 steps/s  loss 1.312  7.3 s left"
    assert figures(job_pb2.Progress(eta_seconds=-1)) == ""
    assert [seconds_text(s) for s in (2.34, 59, 200, 3 * 3600 + 61)] == ["2.3 s", "59 s", "3 min 20 s", "3 h 1 min"]
    assert [bytes_text(b) for b in (12, 2048, 3 * 2**20, 5 * 2**40)] == ["12 B", "2.0 KiB", "3.0 MiB", "5120.0 GiB"]
    assert percent_text(0.8135) == "81.3 %"
    assert percent_text(None) == "-"


def test_summary_shows_teacher_beside_student(capsys: pytest.CaptureFixture[str]) -> None:
    variant = {"name": "fp32", "format": "onnx", "size": 1100000, "path": "student.onnx"}
    recommended = {**variant, "withheld": False, "recommended": True}
    withheld = {**variant, "name": "fp16", "withheld": True, "recommended": False}
    report = {
        "teacher": {"name": "t.onnx", "held_out_accuracy": 0.832, "parameters": 853018, "macs": 125747840},
        "student": {
            "name": "cifar_resnet20", "held_out": 100, "accuracy": 0.78, "accuracy_low": 0.69, "accuracy_high": 0.85,
            "agreement": 0.9, "parameters": 272474, "macs": 40813184,
            "speed": {"teacher_ms": 4.0, "student_ms": 1.25}, "recommended": "fp32",
        },
        "variants": [recommended, withheld],
        "recommendations": [{"target": "cpu", "variant": "fp32", "reason": "nothing was faster"}],
    }  # fmt: skip
    print_report(report)
    out = capsys.readouterr().out
    for text in (
        "83.2 %",
        "78.0 % (69.0 % to 85.0 %)",
        "90.0 %",
        "272,474",
        "1.25",
        "fp32 (recommended)",
        "withheld",
        "take fp32:",
    ):
        assert text in out


def test_students_beyond_a_limit_or_not_counted_are_left_out() -> None:
    rows = [("small", 400, 10, 0.5), ("slow", 400, 90, 3.0), ("large", 9000, 5, 0.0), ("unknown", 0, 0, 0.0)]
    found = [catalogue_pb2.Student(name=name, parameters=p, macs=m, latency_ms=t) for name, p, m, t in rows]

    def names(*limits: tuple[str, float | None], unknown: bool = False) -> list[str]:
        return [s.name for s in within_limits(found, limits, unknown=unknown)]

    assert names(("parameters", None), ("macs", None)) == ["small", "slow", "large", "unknown"]
    assert names(("parameters", 500)) == ["small", "slow"]
    assert names(("parameters", 500), ("macs", 10)) == ["small"]
    assert names(("latency_ms", 1.0)) == ["small"]
    assert names(("parameters", 500), unknown=True) == ["small", "slow", "unknown"]


def test_a_plan_shows_other_efforts_beside_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(
        {
            "picked": 10, "pool_images": 20, "student": "cifar_resnet8", "parameters": 1000, "seconds": 3.0,
            "stages": [{"stage": "distillation", "seconds": 3.0, "memory_bytes": 1000, "how": "timed"}],
            "budget": "1,500 steps: effort quick", "targets": "cached: asked for",
            "outlook": [{"effort": "normal", "steps": 6000, "seconds": 12.0, "points": 9.0}],
        }
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "1,500 steps: effort quick" in shown
    assert "--effort normal" in shown
    assert "+9" in shown


def test_a_forecast_names_the_score_and_the_poorest_classes_first(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"precision": 0.9, "precision_low": 0.85, "precision_high": 0.95, "recall": 0.8}
    found = {
        "sample": 2000, "score": "pu", "why": "the estimated prior .2 says so", "expected": expected,
        "class_names": ["cat", "dog"], "class_counts": [1500, 20], "class_available": [4000, 20],
    }  # fmt: skip
    print_forecast({"selection": found})
    shown = capsys.readouterr().out
    assert "From 2,000 pool images: the score pu" in shown
    assert "90.0 % should be of your source (85.0 % to 95.0 %)" in shown
    assert shown.index("dog") < shown.index("cat")


def test_a_plan_of_an_earlier_version_has_no_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    print_forecast({})
    assert capsys.readouterr().out == ""
