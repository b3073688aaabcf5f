"""Settings: which source counts, what is refused, and that docs and server know the same ones."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from punnet.cli import app
from punnet.errors import InvalidRequest
from punnet.settings import ServerSettings, as_arguments, example, flag_of, markdown_table, resolve, variable_of
from server import builds, quotas

DOCS = Path(__file__).resolve().parents[3] / "docs"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "punnet.toml"
    path.write_text('cpu_slots = 2\nquota_gib = 20\nlisten = "127.0.0.1:1"\ntls_cert = "c.pem"\nreflection = true\n')
    return path


def values(environment: dict[str, str], flags: tuple[str, ...] = ()) -> dict[str, tuple[object, str]]:
    return {found.name: (found.value, found.source) for found in resolve(environment, flags)}


def test_a_flag_counts_before_the_environment_before_the_file_before_the_default(file: Path) -> None:
    environment = {"PUNNET_CONFIG": str(file), "PUNNET_CPU_SLOTS": "3"}
    assert values({"PUNNET_CONFIG": str(file)})["cpu_slots"] == (2, f"file {file}")
    assert values(environment)["cpu_slots"] == (3, "environment PUNNET_CPU_SLOTS")
    assert values(environment, ("--cpu-slots", "4"))["cpu_slots"] == (4, "flag")
    assert values(environment, ("--cpu-slots=5",))["cpu_slots"] == (5, "flag")
    assert values(environment)["queued_jobs"] == (8, "default")
    assert values(environment)["quota_gib"] == (20.0, f"file {file}")


def test_arguments_stand_for_what_file_and_environment_say(file: Path) -> None:
    environment = {"PUNNET_CONFIG": str(file), "PUNNET_THREADS": "6", "PUNNET_REFLECTION": "0"}
    assert as_arguments(environment, ["--cpu-slots", "4"]) == [
        "--listen=127.0.0.1:1",
        "--tls-cert=c.pem",
        "--threads=6",
        "--quota-gib=20.0",
    ]


def test_a_socket_on_the_line_takes_the_place_of_an_address_in_the_file(file: Path) -> None:
    arguments = as_arguments({"PUNNET_CONFIG": str(file)}, ["--socket", "/tmp/s"])
    assert not any(argument.startswith(("--listen", "--tls")) for argument in arguments)
    assert "--listen=127.0.0.1:1" not in as_arguments({"PUNNET_CONFIG": str(file)}, ["--bind", "127.0.0.1:2"])


def test_without_any_source_there_are_no_arguments(tmp_path: Path) -> None:
    assert as_arguments({"XDG_CONFIG_HOME": str(tmp_path)}, []) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("cpu_slot = 2", "'cpu_slot', which is none. Did you mean cpu_slots"),
        ("zebra = 2", "`punnet config example` lists every setting"),
        ('cpu_slots = "2"', "is '2', no int"),
        ("cpu_slots = true", "is True, no int"),
        ("quota_gib = inf", "is inf, no float"),
        ("reflection = 1", "is 1, no bool"),
        ("cpu_slots", "are no TOML"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(content)
    with pytest.raises(InvalidRequest) as caught:
        resolve({"PUNNET_CONFIG": str(path)})
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="No such file"):
        resolve({"PUNNET_CONFIG": "/nowhere/punnet.toml"})


@pytest.mark.parametrize(("name", "text"), [("CPU_SLOTS", "two"), ("REFLECTION", "maybe"), ("QUOTA_GIB", "nan")])
def test_a_variable_of_another_type_is_refused_by_its_name(name: str, text: str) -> None:
    with pytest.raises(InvalidRequest, match=f"PUNNET_{name} is"):
        resolve({f"PUNNET_{name}": text, "XDG_CONFIG_HOME": "/nowhere"})


def test_show_says_as_json_where_each_value_comes_from(file: Path) -> None:
    ran = CliRunner().invoke(app, ["config", "show", "--json", "--threads", "2"], env={"PUNNET_CONFIG": str(file)})
    assert ran.exit_code == 0, ran.output
    shown = json.loads(ran.stdout)
    assert shown["file"] == str(file)
    assert shown["settings"]["threads"] == {"value": 2, "source": "flag"}
    assert set(shown["settings"]) == {setting.name for setting in fields(ServerSettings)}


def test_the_example_is_a_file_that_sets_nothing_and_names_everything(tmp_path: Path) -> None:
    path = tmp_path / "punnet.toml"
    path.write_text(example())
    assert all(source == "default" for _, source in values({"PUNNET_CONFIG": str(path)}).values())
    path.write_text("\n".join(line.removeprefix("# ") for line in example().splitlines() if " = " in line))
    assert all(source != "default" for _, source in values({"PUNNET_CONFIG": str(path)}).values())


def test_the_table_in_the_docs_is_the_dataclass() -> None:
    assert (DOCS / "config.md").read_text().endswith(markdown_table())


def test_settings_are_the_options_of_the_server_with_their_defaults() -> None:
    sources = [DOCS.parent / "server" / name for name in ("main.py", "listening.py", "quotas.py")]
    options = {match for path in sources for match in re.findall(r"add_argument\(\s*\"(--[a-z-]+)\"", path.read_text())}
    assert {flag_of(setting.name) for setting in fields(ServerSettings)} == options - {"--data"}
    assert variable_of("cpu_slots") == "PUNNET_CPU_SLOTS"
    defaults: dict[str, Any] = {setting.name: setting.default for setting in fields(ServerSettings)}
    same = ("queued_jobs", "calls_a_minute", "transfers_a_minute", "open_calls", "failures_a_minute")
    assert {name: defaults[name] for name in same} == {name: getattr(quotas.DEFAULTS, name) for name in same}
    assert defaults["lease_seconds"] == builds.LEASE_SECONDS
    assert defaults["tenant_running_jobs"] == quotas.DEFAULTS.running_jobs
    assert defaults["tenant_storage_gib"] == (quotas.DEFAULTS.storage_bytes or 0) / 2**30
