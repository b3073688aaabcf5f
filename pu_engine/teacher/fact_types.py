"""What was counted and timed on a teacher: frozen, with a JSON form like all of `pu_engine.types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pu_engine.jsonform import MEASURED


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Timed on this machine; milliseconds."""

    subject: str  # teacher | fp32 | ...
    batch: int
    threads: int
    p50_ms: float
    p90_ms: float
    runs: int
    p99_ms: float | None = None  # None: too few runs


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedNode:
    """A node of the canonical model that TensorRT's parser refuses; without a name where it is the whole model."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParserCheck:
    """What TensorRT's parser says of the canonical model."""

    parser: str  # with its version; empty where none answered
    refused: tuple[RefusedNode, ...]  # the first ones
    refused_nodes: int  # all of them
    unchecked: str  # why there is no answer; empty where there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherFacts:
    """Counts of the file as it came, functions written out, and what the canonical model costs here."""

    ir_version: int
    opsets: Mapping[str, int]  # domain -> version, of the operators in use
    operators: Mapping[str, int]  # operator -> nodes, most frequent first; subgraphs count, Constant does not
    activation_bytes: int  # of one image: `activation_memory.peak_live_bytes`
    tensorrt: ParserCheck = field(metadata=MEASURED)
    latencies: tuple[Latency, ...] = field(metadata=MEASURED)


@dataclass(frozen=True, slots=True, kw_only=True)
class TapCandidate:
    """A tensor that can be a tap."""

    name: str
    kind: str  # NCHW | NHWC | tokens | vector
    shape: tuple[int, ...]  # of one image
