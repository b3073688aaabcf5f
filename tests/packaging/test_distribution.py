"""The wheel and the source distribution, as a user installs them: into an environment that has nothing else."""

from __future__ import annotations

import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.packaging.client_pythons import ROOT, build, run

# What a client must not need: each would take hundreds of megabytes, or a compiler.
HEAVY = {"numpy", "torch", "onnx", "onnxruntime", "timm", "starlette", "pyarrow", "pillow"}
IMPORT = "import sys, punnet; sys.exit(bool({'numpy', 'server', 'pu_engine', 'exporters'} & set(sys.modules)))"
PACKAGES = {"punnet", "server", "pu_engine", "exporters"}
DATA = {
    "punnet/py.typed",
    "pu_engine/pages/page.css",
    "pu_engine/pages/report.html",
    "server/page/own.css",
    "server/page/static/page.js",
    "server/page/templates/frame.html",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was built from the source distribution, and that distribution."""
    out = tmp_path_factory.mktemp("dist")
    build(out)
    return out


@pytest.fixture(scope="module", params=["*.whl", "*.tar.gz"])
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A clean environment with the client alone; its Python."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    (distribution,) = built.glob(request.param)
    run(folder / "bin" / "pip", "install", "-q", "-c", ROOT / "constraints.txt", distribution)
    return folder / "bin" / "python"


def test_both_distributions_hold_every_package_with_its_data(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as tar:
        in_sdist = {name.partition("/")[2] for name in tar.getnames()}
    assert in_wheel >= DATA
    assert DATA | {"LICENSE", "README.md", "pyproject.toml"} <= in_sdist
    assert {name.split("/")[0] for name in in_wheel if ".dist-info" not in name} == PACKAGES


def test_a_clean_environment_has_the_client_and_nothing_heavy(environment: Path) -> None:
    assert run(environment.parent / "punnet", "--version").strip()
    run(environment, "-P", "-c", IMPORT)
    installed = {line.split("==")[0].lower() for line in run(environment, "-m", "pip", "freeze").splitlines()}
    assert installed & HEAVY == set()
    run(environment, "-m", "pip", "check")


def test_the_client_says_how_to_get_the_appliance(environment: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [environment.parent / "punnet", "jobs", "--data", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 13
    assert "pip install 'punnet[cpu]'" in done.stderr
