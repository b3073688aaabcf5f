"""Starts a program confined: `python -I -m server.confine --workdir DIR --read PATH ... -- PROGRAM ...`.

The program gets an empty environment but for an allow-list, resource limits, no network, a file system of which it
may read the interpreter, the packages and its inputs and write its own folder only, and it dies with the process
that started the launcher. `python -I -m server.confine --probe` prints as JSON which of that works here.
Standard library only: it runs in front of every stage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from server import confine_probe, landlock, nvidia
from server.namespaces import die_with_parent, forbid_new_privileges, leave_shared_namespaces

GIB = 1 << 30
PASSED_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "PUNNET_RUN_ID", "PUNNET_STAGE_RUN", "CUDA_VISIBLE_DEVICES")
EXIT_ORPHANED = 3
EXIT_UNCONFINED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Limits of one kind of child."""

    address_space_bytes: int
    file_bytes: int = 2 * GIB
    open_files: int = 256


PROFILES: Mapping[str, Profile] = {
    "model": Profile(address_space_bytes=4 * GIB),  # runs a stranger's file
    "training": Profile(address_space_bytes=12 * GIB),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What one child may do."""

    workdir: Path
    read: tuple[Path, ...] = ()
    profile: str = "model"
    cpu_seconds: int = 120
    threads: int = 1
    gpu: bool = False  # may open the GPUs of this machine
    parent: int = field(default_factory=os.getppid)


def clean_environment(confinement: Confinement) -> dict[str, str]:
    """The child's whole environment."""
    scratch = str(confinement.workdir / "tmp")
    threads = str(confinement.threads)
    passed = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
    return passed | {
        # Linux wheels of onnxruntime otherwise write a device id and name an upload address.
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "HOME": scratch,
        "TMPDIR": scratch,
        # Caches of torch and matplotlib look the user's name up, and /etc/passwd can't be read.
        "USER": "punnet",
        "LOGNAME": "punnet",
        # Thread pools reserve address space for every core of the machine at import.
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
    }


def limit_resources(confinement: Confinement) -> None:
    """Set the profile's limits; they hold for every process that the child starts."""
    profile = PROFILES[confinement.profile]
    # CUDA reserves more address space than any machine has memory; what a process may write is bounded there.
    memory = resource.RLIMIT_DATA if confinement.gpu else resource.RLIMIT_AS
    wanted = {
        memory: profile.address_space_bytes,
        resource.RLIMIT_CPU: confinement.cpu_seconds,
        resource.RLIMIT_FSIZE: profile.file_bytes,
        resource.RLIMIT_NOFILE: profile.open_files,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # SIGXCPU at the soft limit says why; SIGKILL at the hard one ends a child that ignores it.
        ceiling = limit + 5 if kind == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else limit
        resource.setrlimit(kind, (limit, ceiling))


def confine(confinement: Confinement) -> None:
    """Give up, in this process, all that the confinement does not grant.

    Means that the kernel or a container's policy withholds are left out: the server probed them when it started,
    and decided then whether it runs without them.
    """
    os.umask(0o077)
    limit_resources(confinement)
    with contextlib.suppress(OSError):
        leave_shared_namespaces()
    # After the new user namespace, for a change of credentials clears it.
    die_with_parent()
    if os.getppid() != confinement.parent:
        raise SystemExit(EXIT_ORPHANED)
    forbid_new_privileges()
    if landlock.abi_version() > 0:
        facts, devices = (nvidia.FACTS, nvidia.device_files()) if confinement.gpu else ((), ())
        landlock.restrict(
            read=(*landlock.interpreter_paths(), *confinement.read, *facts), write=(confinement.workdir, *devices)
        )


def launch(confinement: Confinement, program: list[str]) -> None:
    """Replace this process by the confined program; does not return."""
    environment = clean_environment(confinement)
    Path(environment["HOME"]).mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chdir(confinement.workdir)
    confine(confinement)
    os.execve(program[0], program, environment)


def probe() -> dict[str, bool]:
    """Which means of confinement work: a confined child tries to break each of them."""
    with tempfile.TemporaryDirectory(prefix="punnet-probe-") as scratch:
        workdir = Path(scratch) / "work"
        workdir.mkdir()
        return confine_probe.attack(
            Path(scratch), workdir, lambda: confine(Confinement(workdir=workdir, parent=os.getppid()))
        )


def main(arguments: list[str] | None = None) -> int:
    """Launch what the command line names, or print the probe's findings."""
    parser = argparse.ArgumentParser(prog="python -m server.confine", description=__doc__)
    parser.add_argument("--probe", action="store_true")
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("--read", type=Path, action="append", default=[])
    parser.add_argument("--profile", choices=sorted(PROFILES), default="model")
    parser.add_argument("--cpu-seconds", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--parent", type=int, default=os.getppid())
    parser.add_argument("program", nargs="*")
    options = parser.parse_args(arguments)
    if options.probe:
        json.dump(probe(), sys.stdout)
        return 0
    if options.workdir is None or not options.program:
        parser.error("--workdir and a program are needed")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    confinement = Confinement(
        workdir=options.workdir.resolve(),
        read=tuple(path.resolve() for path in options.read),
        profile=options.profile,
        cpu_seconds=options.cpu_seconds,
        threads=options.threads,
        gpu=options.gpu,
        parent=options.parent,
    )
    launch(confinement, options.program)
    return EXIT_UNCONFINED


if __name__ == "__main__":
    raise SystemExit(main())
