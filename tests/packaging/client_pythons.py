"""Does the wheel alone serve a client on every Python it names? `python -m tests.packaging.client_pythons`.

Builds the wheel, installs it into a clean environment of each Python that this machine has (on the PATH, or of pyenv),
and runs `client_smoke.py` there against a server of this environment. Prints what was had, and what it weighs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.service.running_server import RunningServer, image_tar

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).with_name("client_smoke.py")
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
IMAGES = 6
SECONDS = 900.0
EXPECTED = {
    "images": IMAGES,
    "files": ["pool-summary.json", "pool.html"],
    "watched": True,
    "refused": "JOB_NOT_FOUND",
    "same_version": True,
    "heavy": [],
}


def main() -> int:
    """Check every Python that is to be had; 1 where one fails, or where there is none."""
    folder = Path(tempfile.mkdtemp(prefix="pnc-", dir="/tmp"))  # a socket's path is short
    server = RunningServer(folder)
    try:
        wheel = build_wheel(folder)
        tar = folder / "pool.tar"
        tar.write_bytes(image_tar(IMAGES))
        server.start()
        rows = {version: checked(version, wheel, server.address, tar) for version in VERSIONS}
    finally:
        server.close()
        shutil.rmtree(folder)
    for version, row in rows.items():
        print(f"{version}: {json.dumps(row) if row else 'not on this machine'}")
    had = [row for row in rows.values() if row]
    wrong = [row for row in had if {name: row.get(name) for name in EXPECTED} != EXPECTED]
    return 0 if had and not wrong else 1


def interpreter(version: str) -> Path | None:
    """A Python of this version: of pyenv, or on the PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(pyenv.glob(f"{version}.*/bin/python"), key=lambda path: [*map(int, re.findall(r"\d+", str(path)))])
    on_path = shutil.which(f"python{version}")
    for candidate in [*reversed(found), *([Path(on_path)] if on_path else [])]:
        asked = [str(candidate), "-I", "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)  # a shim of pyenv may stand for none
        if done.stdout.strip() == version:
            return candidate
    return None


def build_wheel(folder: Path) -> Path:
    """The wheel of this source tree."""
    build(folder / "dist", "--wheel")
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def build(out: Path, *options: str) -> None:
    """Build distributions from a copy of the tracked files: no build leaves anything in the tree, or takes it along."""
    with tempfile.TemporaryDirectory(prefix="punnet-source-") as source:
        for name in filter(None, run("git", "-C", ROOT, "ls-files", "-z").split("\0")):
            if (ROOT / name).is_file():  # removed, and not yet committed so
                (Path(source) / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(source) / name).write_bytes((ROOT / name).read_bytes())
        run(sys.executable, "-m", "build", *options, "--outdir", out, source)


def checked(version: str, wheel: Path, address: str, tar: Path) -> dict[str, Any] | None:
    """What the smoke test found on one Python, with the size of what was installed; None where there is none."""
    python = interpreter(version)
    if python is None:
        return None
    environment = wheel.parent / version
    run(python, "-m", "venv", environment)
    own = environment / "bin" / "python"
    before = size_mib(environment)
    run(own, "-m", "pip", "install", "-q", wheel)  # without our pins, which are those of the server: as users do
    weight = size_mib(environment) - before
    run(own, "-m", "pip", "check")
    run(own, "-I", "-c", "import punnet")  # compiles it: the import that is timed is not the first one
    said = run(own, "-I", SMOKE, address, tar, f"python-{version.replace('.', '-')}", environment / "fetched")
    run(environment / "bin" / "punnet", "jobs", "--server", address, "--json")
    row: dict[str, Any] = json.loads(said)
    return {**row, "installed_mib": round(weight, 1)}


def size_mib(folder: Path) -> float:
    """Of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 2**20


def run(*command: str | Path) -> str:
    """What a command prints; raises RuntimeError with all it said where it fails."""
    texts = [str(part) for part in command]
    done = subprocess.run(texts, capture_output=True, text=True, check=False, timeout=SECONDS)
    if done.returncode:
        raise RuntimeError(f"{' '.join(texts)} failed: {done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main())
