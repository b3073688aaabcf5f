"""`punnet doctor`: what is installed, what the server can do, what is missing."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import typer

from punnet import cli_options as o
from punnet.cli_output import bytes_text, notices, print_document, print_table
from punnet.client import Client
from punnet.errors import PunnetError
from punnet.private_server import data_folder, missing_packages
from punnet.v1 import compression_pb2

CLIENT_DISTRIBUTIONS = ("punnet", "grpcio", "protobuf", "google-crc32c", "rich", "typer")
ENGINE_DISTRIBUTIONS = ("torch", "onnx", "onnxruntime", "onnxruntime-gpu", "timm", "pyarrow")
EXTRA_DISTRIBUTIONS = ("tensorrt-rtx", "tensorrt-cu13", "ray")
LEAST_FREE_BYTES = 2 * 2**30  # a pool, a training set and exports of one modest job
PROBLEM_STATUS = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What doctor found; `problems` are what keeps something from working."""

    packages: Mapping[str, str]
    server: compression_pb2.GetCapabilitiesResponse | None
    address: str
    free_bytes: int
    problems: tuple[str, ...]


def doctor(server: o.Server = None, data: o.Data = None, as_json: o.AsJson = False) -> None:
    """Say what is installed, what the server can do and what is missing."""
    found = examine(server, data_folder(data))
    if as_json:
        print_document(_document(found))
    else:
        _print(found)
    if found.problems:
        raise typer.Exit(PROBLEM_STATUS)


def examine(server: str | None, data: Path) -> Findings:
    """Looks at the installed packages and asks the server, which is started where it is private and not running."""
    packages = installed()
    problems = package_problems(packages, private=not server)
    capabilities, address = None, ""
    if server or not problems:
        try:
            with Client(server, data=data) as client:
                capabilities, address = client.capabilities(), client.address
        except PunnetError as error:
            problems.append(str(error))
    existing = next(folder for folder in (data, *data.parents) if folder.exists())
    free = capabilities.free_disk_bytes if capabilities else shutil.disk_usage(existing).free
    if free < LEAST_FREE_BYTES:
        problems.append(f"Only {bytes_text(free)} are free for the data folder; a job needs some GiB. Free some.")
    return Findings(packages=packages, server=capabilities, address=address, free_bytes=free, problems=tuple(problems))


def installed() -> dict[str, str]:
    """Distribution -> version, of those that matter here and are installed."""
    wanted = (*CLIENT_DISTRIBUTIONS, *ENGINE_DISTRIBUTIONS, *EXTRA_DISTRIBUTIONS)
    found = {name: list(metadata.distributions(name=name)) for name in wanted}
    return {name: several[0].version for name, several in found.items() if several}


def package_problems(packages: Mapping[str, str], *, private: bool) -> list[str]:
    """What is wrong with the installation; a private server needs the engine's packages too."""
    problems = []
    if {"onnxruntime", "onnxruntime-gpu"} <= packages.keys():
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files. "
            "Uninstall both, then install punnet[cpu] or punnet[gpu]."
        )
    missing = missing_packages() if private else []
    if missing:
        problems.append(
            f"A private server needs {', '.join(missing)}. "
            "Install the appliance with `pip install 'punnet[cpu]'`, or name a running one with --server."
        )
    return problems


def _document(found: Findings) -> dict[str, Any]:
    server = found.server
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "packages": dict(found.packages),
        "server": None
        if server is None
        else {
            "address": found.address,
            "version": server.version,
            "packages": dict(server.packages),
            "devices": list(server.devices),
            "confinement": dict(server.confinement),
            "targets": list(server.targets),
            "max_teacher_bytes": server.max_teacher_bytes,
        },
        "free_disk_bytes": found.free_bytes,
        "problems": list(found.problems),
    }


def _print(found: Findings) -> None:
    rows = [("python", platform.python_version()), *sorted(found.packages.items())]
    print_table("Installed here", ("package", "version"), rows)
    if found.server is not None:
        confinement = (
            f"{name}: {'works' if on else 'missing'}" for name, on in sorted(found.server.confinement.items())
        )
        rows = [
            ("address", found.address),
            ("version", found.server.version),
            ("devices", ", ".join(found.server.devices)),
            ("targets", ", ".join(found.server.targets)),
            ("confinement", "\n".join(confinement)),
            ("free disk", bytes_text(found.free_bytes)),
        ]
        print_table("Server", ("", ""), rows)
    for problem in found.problems:
        notices().print(f"problem: {problem}", style="bold red", soft_wrap=True, markup=False, highlight=False)
    if not found.problems:
        typer.echo("Nothing is missing.")
