"""The tools that `benchmarks.int8_peers` sets Punnet's int8 beside, each a program in its own environment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.conditions import ROOT
from benchmarks.kept_students import Inputs
from exporters.calibration import Batches, observe
from exporters.inference import logits_of, open_model
from exporters.int8_search import Budget, Trials, search

MAKE = "make peer-environments"
CALIBRATION_BATCH = 64
ANYTHING = Budget(accuracy=1.0, agreement=0.0)  # met by the first candidate: no node is searched for
MESSAGE_LINES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A way in which another tool makes int8 of a file."""

    name: str
    environment: str  # a folder of the checkout; empty: Punnet's own environment
    program: str  # beside this module: MODEL.onnx CALIBRATION.npy OUT [SETTING]
    file: str
    setting: tuple[str, ...] = ()

    @property
    def runtime(self) -> str:
        """Which runtime its file is for, as `pu_engine.variants.runtime_variants` names it."""
        return "onnx" if self.file.endswith(".onnx") else "openvino"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A file with what calibrating and quantising took, reading and writing apart."""

    path: Path
    seconds: float
    cpu_seconds: float
    versions: Mapping[str, str] = field(default_factory=dict)

    def bytes(self) -> int:
        """The file's size, with the weights that OpenVINO keeps beside it."""
        beside = self.path.with_suffix(".bin")
        weights = beside.stat().st_size if self.path.suffix == ".xml" else 0
        return self.path.stat().st_size + weights


PEERS = (
    Peer(name="onnxruntime", environment="", program="int8_peers_onnxruntime.py", file="ort.onnx"),
    Peer(
        name="onnxruntime U8S8", environment="", program="int8_peers_onnxruntime.py", file="ort-u8s8.onnx",
        setting=("U8S8",),
    ),
    Peer(name="NNCF", environment=".venv-nncf", program="int8_peers_nncf.py", file="nncf.onnx"),
    Peer(name="NNCF IR", environment=".venv-nncf", program="int8_peers_nncf.py", file="nncf.xml"),
    Peer(name="ModelOpt", environment=".venv-modelopt", program="int8_peers_modelopt.py", file="modelopt.onnx"),
)  # fmt: skip


def python_of(peer: Peer) -> Path:
    """The Python that runs a peer's program.

    Raises:
        SystemExit: its environment is not there; the message says what makes it.
    """
    if not peer.environment:
        return Path(sys.executable)
    python = ROOT / peer.environment / "bin" / "python"
    if not (ROOT / peer.environment / ".installed").exists():
        raise SystemExit(f"{peer.name} has no environment at {ROOT / peer.environment}: `{MAKE}` makes it.")
    return python


def quantise(peer: Peer, source: Path, calibration: Path, out: Path) -> Made:
    """A peer's file of an fp32 ONNX file.

    Raises:
        SystemExit: its program failed; the message has the end of what it wrote.
    """
    program = Path(__file__).with_name(peer.program)
    arguments = [str(source), str(calibration), str(out / peer.file), *peer.setting]
    # -I: nothing of the checkout can be imported.
    done = subprocess.run(
        [str(python_of(peer)), "-I", str(program), *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[-MESSAGE_LINES:])
        raise SystemExit(f"{peer.name} made no file of {source} (exit status {done.returncode}):\n{said}")
    took: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Made(path=out / peer.file, **took)


def calibrated_again(source: Path, inputs: Inputs, form: str) -> tuple[float, float]:
    """Seconds and CPU seconds of calibrating and trying both methods as export does it; no nodes are taken out."""
    model = onnx.load(source)
    clock, processor = time.monotonic(), time.process_time()
    observed = observe(model, batches_of(inputs.calibration), threads=1)
    validation = batches_of(inputs.validation)
    trials = Trials(
        batches=validation,
        reference=logits_of(open_model(model, threads=1), validation(CALIBRATION_BATCH)),
        labels=inputs.answers,
        threads=1,
    )
    search(model, observed, form, trials, ANYTHING)
    return time.monotonic() - clock, time.process_time() - processor


def batches_of(images: NDArray[np.float32]) -> Batches:
    """Input tensors [n, C, S, S] by batches."""

    def batches(size: int) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(images), size):
            yield np.asarray(images[start : start + size])

    return batches
