"""What an operator can set of a server: one dataclass, from which come the flags' defaults, the table in the docs and
`punnet config`.

A flag counts before a variable of the environment, that before the file, that before the default. The file is TOML; it
is named by PUNNET_CONFIG, else it is ~/.config/punnet/punnet.toml where that exists.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from punnet.errors import InvalidRequest

if sys.version_info >= (3, 11):  # noqa: UP036 - the client runs on 3.10
    import tomllib
else:
    import tomli as tomllib

FILE_VARIABLE = "PUNNET_CONFIG"
TRUE, FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off", ""})
ALIASES = {"--bind": "--listen"}
# A server listens at one of them; what belongs to the other is left alone then.
ELSEWHERE = {"socket": frozenset({"listen", "tls_cert", "tls_key", "client_ca"}), "listen": frozenset({"socket"})}


def _setting(kind: type, says: str, default: Any = None) -> Any:
    return field(default=default, metadata={"kind": kind, "says": says})


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Each field is a flag (`--cpu-slots`), a variable (`PUNNET_CPU_SLOTS`) and a key of the file (`cpu_slots`)."""

    listen: str | None = _setting(str, "address and port where clients connect; other machines need TLS and tokens")
    socket: str | None = _setting(str, "Unix socket where clients connect, in place of `listen`")
    tls_cert: str | None = _setting(str, "PEM file of the certificate chain of the port")
    tls_key: str | None = _setting(str, "PEM file of its private key")
    client_ca: str | None = _setting(str, "PEM file; clients must show a certificate of this authority")
    require_tokens: bool = _setting(bool, "ask for tokens on a socket too, and on this machine's port", False)
    page: str | None = _setting(str, "address and port of the read-only page; none is served unless this is set")
    metrics: str | None = _setting(str, "address and port of Prometheus metrics; none are served unless this is set")
    threads: int | None = _setting(int, "threads of each stage; all cores unless this is set")
    runner: str = _setting(str, "where stages run: `local`, `ray` (on this machine), or `ray://HOST:PORT`", "local")
    store: str | None = _setting(
        str, "`s3://BUCKET/PREFIX` or `file:///FOLDER`, for nodes of Ray that do not see the data folder"
    )
    stage_gpus: float = _setting(float, "GPUs of a stage that can use one, on Ray", 0.0)
    cpu_slots: int = _setting(int, "short jobs at once: inspecting, planning, ingest", 1)
    queued_jobs: int = _setting(int, "jobs of one tenant that may wait", 8)
    tenant_storage_gib: float = _setting(float, "of all that a tenant has stored, where there are accounts", 50.0)
    tenant_running_jobs: int = _setting(int, "compressions of one tenant at once, and as many short jobs", 1)
    calls_a_minute: int = _setting(int, "of one tenant", 60)
    transfers_a_minute: int = _setting(int, "uploads and downloads of one tenant", 6000)
    open_calls: int = _setting(int, "of one tenant at once", 128)
    failures_a_minute: int = _setting(int, "of a peer without a valid token", 10)
    keep_jobs_days: float | None = _setting(float, "jobs go that ended so many days ago; kept unless this is set")
    keep_results_days: float | None = _setting(
        float, "stage results go so many days after their jobs ended, but for artifacts; kept unless this is set"
    )
    quota_gib: float | None = _setting(
        float, "stage results, then blobs of ended jobs go beyond it, the oldest first; no bound unless this is set"
    )
    idle_seconds: float | None = _setting(float, "the server ends after so long without work; never unless this is set")
    lease_seconds: float = _setting(float, "of a build that a device's agent takes", 30.0)
    reflection: bool = _setting(bool, "describe the services to tools that ask for it", False)
    allow_weak_sandbox: bool = _setting(bool, "serve a port although confinement is incomplete here", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One setting's value and where it comes from."""

    name: str
    value: Any
    source: str  # default | file PATH | environment VARIABLE | flag


def flag_of(name: str) -> str:
    """cpu_slots -> --cpu-slots."""
    return f"--{name.replace('_', '-')}"


def variable_of(name: str) -> str:
    """cpu_slots -> PUNNET_CPU_SLOTS."""
    return f"PUNNET_{name.upper()}"


def config_file(environment: Mapping[str, str]) -> Path | None:
    """The file that counts; one that PUNNET_CONFIG names must exist, the usual one need not."""
    stated = environment.get(FILE_VARIABLE)
    if stated:
        return Path(stated)
    usual = Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "punnet" / "punnet.toml"
    return usual if usual.is_file() else None


def resolve(environment: Mapping[str, str], flags: Sequence[str] = ()) -> list[Found]:
    """Every setting, in the order of the dataclass.

    Args:
        flags: as a command line has them; those that are no settings are passed over.

    Raises:
        InvalidRequest: a file that can't be read, an unknown key, or a value of another type.
    """
    path = config_file(environment)
    stated = _read_file(path) if path else {}
    on_line = _flags(flags)
    elsewhere = frozenset[str]().union(*(ELSEWHERE[name] for name in on_line if name in ELSEWHERE))
    found = []
    for setting in fields(ServerSettings):
        name, kind = setting.name, setting.metadata["kind"]
        value, source = setting.default, "default"
        if name not in elsewhere:
            if name in stated:
                value, source = _typed(kind, stated[name], f"{name} in {path}"), f"file {path}"
            if variable_of(name) in environment:
                text = environment[variable_of(name)]
                value, source = _parsed(kind, text, variable_of(name)), f"environment {variable_of(name)}"
        if name in on_line:
            value, source = _parsed(kind, on_line[name], flag_of(name)), "flag"
        found.append(Found(name=name, value=value, source=source))
    return found


def as_arguments(environment: Mapping[str, str], flags: Sequence[str]) -> list[str]:
    """What file and environment say, as flags to stand before those of the command line, which then count.

    Raises:
        InvalidRequest: as `resolve`.
    """
    arguments = []
    for found in resolve(environment, flags):
        if found.source in ("default", "flag") or found.value is None or found.value is False:
            continue
        arguments += [flag_of(found.name)] if found.value is True else [f"{flag_of(found.name)}={found.value}"]
    return arguments


def markdown_table() -> str:
    """The settings as docs/config.md lists them."""
    lines = ["| key of the file | flag | variable | type | default | what it sets |", "|---|---|---|---|---|---|"]
    for setting in fields(ServerSettings):
        name, kind = setting.name, setting.metadata["kind"].__name__
        default = "" if setting.default is None else f"`{_toml(setting.default)}`"
        cells = (f"`{name}`", f"`{flag_of(name)}`", f"`{variable_of(name)}`", kind, default, setting.metadata["says"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def example() -> str:
    """A file with every setting commented out."""
    lines = ["# Settings of a Punnet server. What is commented out has its default."]
    for setting in fields(ServerSettings):
        kind, default = setting.metadata["kind"], setting.default
        shown = default if default is not None else {str: "127.0.0.1:7860", int: 1, float: 30.0}.get(kind, False)
        lines += ["", f"# {setting.metadata['says']}", f"# {setting.name} = {_toml(shown)}"]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _invalid(
            f"The settings {path} can't be read: {error.strerror}.", f"Mend it, or unset {FILE_VARIABLE}."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _invalid(f"The settings {path} are no TOML: {error}.", "Mend the line that it names.") from error
    known = [setting.name for setting in fields(ServerSettings)]
    for name in content:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            remedy = f"Did you mean {near[0]}?" if near else "`punnet config example` lists every setting."
            raise _invalid(f"The settings {path} have a key {name!r}, which is none.", remedy)
    return content


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    """Settings on a command line: `--name value`, `--name=value`, and `--name` of a bool."""
    kinds = {flag_of(setting.name): setting for setting in fields(ServerSettings)}
    found: dict[str, str] = {}
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        flag = ALIASES.get(flag, flag)
        if flag not in kinds:
            continue
        if kinds[flag].metadata["kind"] is bool:
            value = value if equals else "true"
        elif not equals:
            value = arguments[index + 1] if index + 1 < len(arguments) else ""
        found[kinds[flag].name] = value
    return found


def _typed(kind: type, value: Any, where: str) -> Any:
    """A value of the file, whose type TOML gives."""
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    if not fits or (kind is float and not math.isfinite(value)):
        raise _invalid(f"{where} is {value!r}, no {kind.__name__}.", f"Give a {kind.__name__}.")
    return value


def _parsed(kind: type, text: str, where: str) -> Any:
    """A value of the environment or of a flag."""
    if kind is bool:
        if text.lower() not in TRUE | FALSE:
            raise _invalid(f"{where} is {text!r}, no bool.", "Give 1 or 0.")
        return text.lower() in TRUE
    try:
        value = kind(text)
    except ValueError:
        raise _invalid(f"{where} is {text!r}, no {kind.__name__}.", f"Give a {kind.__name__}.") from None
    return _typed(kind, value, where)


def _invalid(message: str, remedy: str) -> InvalidRequest:
    return InvalidRequest(message, code="REQUEST_INVALID", remedy=remedy)
