"""The container's files where no engine can build them: their form, and the profile applied to a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from punnet.cli import app
from punnet.settings import ServerSettings, variable_of
from server.main import parse_settings
from tests.packaging import seccomp_profile
from tests.service.running_server import RunningServer, image_tar

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
PROFILE: dict[str, Any] = json.loads((DEPLOY / "seccomp.json").read_text())
# What takes over a kernel or another process; no container of ours has any use for them.
NEVER = {"mount", "umount2", "pivot_root", "ptrace", "bpf", "kexec_load", "init_module", "setns", "reboot", "keyctl"}


def library() -> Any:
    found = seccomp_profile.library()
    if found is None:
        pytest.skip("libseccomp is not installed")
    return found


def names() -> list[str]:
    return [name for rule in PROFILE["syscalls"] for name in rule["names"]]


def test_the_profile_refuses_by_default_and_names_each_call_once() -> None:
    assert PROFILE["defaultAction"] == "SCMP_ACT_ERRNO"
    assert len(names()) == len(set(names()))
    assert set(names()) & NEVER == set()
    known = {"comment", "names", "action", "args", "errnoRet"}
    assert [rule for rule in PROFILE["syscalls"] if not rule.keys() <= known] == []


def test_the_profile_names_system_calls_that_there_are() -> None:
    found = library()
    assert [name for name in names() if seccomp_profile.number(found, name) == seccomp_profile.UNKNOWN] == []


@pytest.fixture
def filtered(folder: Path) -> Iterator[RunningServer]:
    """A server under the profile."""
    library()
    server = RunningServer(folder, launcher=("-m", "tests.packaging.seccomp_profile", str(DEPLOY / "seccomp.json")))
    server.start()
    yield server
    server.close()


def test_a_server_under_the_profile_runs_confined_stages(filtered: RunningServer) -> None:
    job = filtered.ended(filtered.ingest("web", filtered.upload(image_tar(3))).id)
    assert job.error.reason == ""
    log = (filtered.data / "server.log").read_text()
    assert "the confinement of children is weak" not in log


def test_a_process_under_the_profile_can_not_mount_or_enter_namespaces() -> None:
    library()
    code = (
        "import ctypes, sys; c = ctypes.CDLL(None, use_errno=True);"
        "print(c.unshare(0x20000), c.mount(b'a', b'/mnt', b'tmpfs', 0, None), c.unshare(0x58000000))"
    )
    command = [sys.executable, "-m", "tests.packaging.seccomp_profile", str(DEPLOY / "seccomp.json")]
    ran = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.split() == ["-1", "-1", "0"]


def test_compose_confines_both_services() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert set(compose["services"]) == {"punnet", "punnet-gpu"}
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "seccomp=./seccomp.json" in service["security_opt"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert "privileged" not in service


def service_of(name: str) -> dict[str, Any]:
    """The one service that a Compose file over compose.yaml changes."""
    service: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())["services"]["punnet"]
    return service


def test_paths_that_compose_names_are_in_the_tree() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
        profiles = [option.partition("=")[2] for option in service["security_opt"] if option.startswith("seccomp=")]
        assert [profile for profile in profiles if not (DEPLOY / profile).is_file()] == []
        assert {volume.partition(":")[0] for volume in service["volumes"]} <= compose["volumes"].keys()


@pytest.mark.parametrize("name", ["compose.yaml", "compose.tls.yaml"])
def test_variables_that_compose_sets_are_settings(name: str) -> None:
    known = {variable_of(field.name) for field in fields(ServerSettings)}
    assert set(service_of(name)["environment"]) <= known


def test_compose_with_tls_serves_a_port_as_the_server_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUNNET_SOCKET", "/data/punnet.sock")  # as the image sets it
    service = service_of("compose.tls.yaml")
    assert service["command"][0] == "serve"
    listening = parse_settings(["--data", "/data", *service["command"][1:]]).listening
    assert (listening.address, listening.loopback, listening.require_tokens) == ("0.0.0.0:7860", False, True)
    mounts = {volume.split(":")[-2] for volume in service["volumes"]}
    named = [part for part in (*service["command"], *service["healthcheck"]["test"]) if part.endswith((".pem", ".key"))]
    assert {str(Path(part).parent) for part in named} == mounts == {"/tls"}


def test_health_is_asked_by_a_command_that_there_is() -> None:
    test = service_of("compose.tls.yaml")["healthcheck"]["test"]
    assert test[:2] == ["CMD", "punnet"]
    command = typer.main.get_command(app).commands["health"]  # type: ignore[attr-defined]
    known = {
        option for parameter in (*command.params, *typer.main.get_command(app).params) for option in parameter.opts
    }
    assert {part for part in test if part.startswith("--")} <= known
    assert "health" in test


def test_the_image_runs_as_nobody_in_particular_and_says_how_it_is() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    last_stage = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert [line for line in last_stage if line.startswith("USER ")] == ["USER 10001:10001"]
    assert any(line.startswith("HEALTHCHECK") for line in last_stage)
    copied = {match[1] for line in lines if (match := re.match(r"COPY (?!--from)(\S+) \S+$", line))}
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {f"!{name}" for name in copied} <= set(ignored)


def test_cluster_of_the_docs_has_the_port_that_they_name_and_reports_nothing() -> None:
    cluster = yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text())
    head, worker = (" ".join(cluster[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    address = f"ray://{cluster['provider']['head_ip']}:10001"
    assert "--ray-client-server-port=10001" in head
    assert address in (ROOT / "docs" / "cluster.md").read_text()
    for commands in (head, worker):
        assert "RAY_USAGE_STATS_ENABLED=0" in commands
        assert "RAY_AUTH_MODE=token" in commands
