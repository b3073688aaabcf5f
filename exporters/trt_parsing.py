"""Which nodes of an ONNX file a TensorRT parser refuses, found in a process of its own.

The parser is native code that may end its process on a graph that it does not expect, so the caller starts a child:
`python -I -m exporters.trt_parsing MODEL.onnx` prints what it said as one JSON object. No GPU is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARSERS = {"tensorrt_rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}  # the first that imports is asked
TIMEOUT_SECONDS = 60.0  # a ResNet-56 takes 0.02 s
KEPT_NODES = 200
REASON_CHARACTERS = 300
CUDA_NOTE = "[checkMacros.cpp::catchCudaError"
NOT_INSTALLED = "no TensorRT parser installed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """One node that the parser refused; `node` is empty where it refused the model as a whole."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsing:
    """What the parser said.

    It names every node of an operator that it lacks; a node that it knows but can't build ends its reading.
    """

    parser: str  # with its version; empty where none answered
    refused: tuple[Refusal, ...] = ()  # KEPT_NODES at most
    refused_nodes: int = 0  # all of them
    unchecked: str = ""  # why there is no answer


def parse(onnx_path: Path, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Parsing:
    """Ask the parser in a child process; a crash or hang of it is an answer, not an error."""
    if not any(importlib.util.find_spec(name) for name in PARSERS):
        return Parsing(parser="", unchecked=NOT_INSTALLED)
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "exporters.trt_parsing", str(onnx_path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Parsing(parser="", unchecked=f"TensorRT's parser took more than {timeout_seconds:g} s")
    if done.returncode:
        return Parsing(parser="", unchecked=f"TensorRT's parser ended with {_status(done.returncode)}")
    said = json.loads(done.stdout)
    return Parsing(**(said | {"refused": tuple(Refusal(**row) for row in said["refused"])}))


def parse_here(onnx_path: Path) -> Parsing:
    """Ask the parser in this process, types being those of the file (strongly typed)."""
    found = _import_parser()
    if found is None:
        return Parsing(parser="", unchecked=NOT_INSTALLED)
    name, trt = found
    log = trt.Logger(trt.Logger.INTERNAL_ERROR)  # what it says of nodes comes from the parser, not from the log
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    accepted = parser.parse_from_file(str(onnx_path))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    refused = _refusals(errors)
    if not accepted and not refused:
        refused = [Refusal(node="", operator="", reason="refused without a reason")]
    return Parsing(parser=f"{name} {trt.__version__}", refused=tuple(refused[:KEPT_NODES]), refused_nodes=len(refused))


def _import_parser() -> tuple[str, Any] | None:
    for module, name in PARSERS.items():
        try:
            return name, importlib.import_module(module)
        except ImportError:
            continue
    return None


def _refusals(errors: Sequence[Any]) -> list[Refusal]:
    """One for each node, with the first reason."""
    found: dict[tuple[int, str], Refusal] = {}
    for error in errors:
        name = error.node_name() or (f"#{error.node()}" if error.node_operator() else "")
        row = Refusal(node=name, operator=error.node_operator(), reason=_reason(error.desc()))
        found.setdefault((error.node(), name), row)
    return list(found.values())


def _reason(text: str) -> str:
    """The parser's words on one line; for an operator that it lacks it only gives the condition that failed."""
    if text == "false" or "Plugin not found" in text:
        return "the parser has no such operator"
    # Without a driver TensorRT-RTX 1.7 appends what CUDA said to each of its own errors.
    return " ".join(text.partition(CUDA_NOTE)[0].split())[:REASON_CHARACTERS]


def _status(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit status {returncode}"


def main(arguments: Sequence[str]) -> int:
    """Print what the parser says of the file that the command line names."""
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the parser itself prints on stdout
    said = parse_here(Path(arguments[0]))
    rows = [{"node": r.node, "operator": r.operator, "reason": r.reason} for r in said.refused]
    values = {"parser": said.parser, "refused": rows, "refused_nodes": said.refused_nodes, "unchecked": said.unchecked}
    with os.fdopen(answer, "w") as stream:
        json.dump(values, stream)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
