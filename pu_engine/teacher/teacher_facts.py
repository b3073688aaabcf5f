"""What there is to know of a teacher beside its conventions: counted on the file, measured on the canonical model."""

from __future__ import annotations

import mmap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from exporters import trt_parsing
from pu_engine.guard import wire_scan
from pu_engine.guard.graph_walk import graphs_of
from pu_engine.runtime import forward
from pu_engine.runtime.latency import measure_latency
from pu_engine.teacher import activation_memory
from pu_engine.teacher.canonicalisation import Canonical, noise
from pu_engine.teacher.fact_types import Latency, ParserCheck, RefusedNode, TeacherFacts
from pu_engine.types import IntakeInputs, Preprocessing

DEFAULT_DOMAIN = "ai.onnx"
LARGE_BATCH = 32
# One run of the larger batch shall stay under half a second or so on a few cores: five runs of it are timed at least.
BATCH_MACS = 2e9
LATENCY_SECONDS = 0.5  # of one batch size: intake shall not take longer for its timings than for its findings


def measure(
    inputs: IntakeInputs, original: Any, canonical: Canonical, onnx_path: Path, preprocessing: Preprocessing
) -> TeacherFacts:
    """The facts of one teacher.

    Args:
        inputs: whose file the guard let pass. original: the guarded model.
        onnx_path: the canonical model on the disk, for TensorRT's parser.
        preprocessing: any with the teacher's layout, size and type; images are noise.
    """
    rows = noise(canonical.batch or 1, preprocessing, np.random.default_rng(0))
    sizes = activation_memory.observed_sizes(canonical.model, rows, inputs.threads)
    return TeacherFacts(
        ir_version=ir_version(Path(inputs.teacher.path)),
        opsets={item.domain or DEFAULT_DOMAIN: int(item.version) for item in original.opset_import},
        operators=operator_counts(original),
        activation_bytes=activation_memory.peak_live_bytes(canonical.model, sizes) // len(rows),
        tensorrt=parser_check(onnx_path),
        latencies=latencies(canonical, preprocessing, inputs.threads),
    )


def ir_version(source: Path) -> int:
    """As the file says it; the guarded copy may have been raised to a later one."""
    with source.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return wire_scan.declared_ir_version(data)


def operator_counts(model: Any) -> dict[str, int]:
    """Nodes of each operator, most frequent first; those of other domains with their domain."""
    nodes = [node for graph in graphs_of(model.graph) for node in graph.node if node.op_type != "Constant"]
    names = [node.op_type if node.domain in ("", DEFAULT_DOMAIN) else f"{node.domain}.{node.op_type}" for node in nodes]
    return dict(sorted(Counter(names).items(), key=lambda item: (-item[1], item[0])))


def parser_check(onnx_path: Path) -> ParserCheck:
    """What TensorRT's parser refuses; asked in a process of its own, for a crash of it must not end intake."""
    said = trt_parsing.parse(onnx_path)
    return ParserCheck(
        parser=said.parser,
        refused=tuple(RefusedNode(node=r.node, operator=r.operator, reason=r.reason) for r in said.refused),
        refused_nodes=said.refused_nodes,
        unchecked=said.unchecked,
    )


def latencies(canonical: Canonical, preprocessing: Preprocessing, threads: int) -> tuple[Latency, ...]:
    """Timings of the canonical model at batch 1 and a larger one, or at the only one that it takes."""
    session = forward.stranger_session(canonical.model, threads)
    generator = np.random.default_rng(0)
    batches = (1, large_batch(canonical.macs)) if canonical.batch is None else (canonical.batch,)
    return tuple(
        measure_latency(
            session,
            noise(batch, preprocessing, generator),
            subject="teacher",
            threads=threads,
            budget_seconds=LATENCY_SECONDS,
        )
        for batch in batches
    )


def large_batch(macs: int) -> int:
    """A power of two from 2 to 32, smaller for a teacher of many multiply-accumulates."""
    affordable = max(2.0, min(float(LARGE_BATCH), BATCH_MACS / max(1, macs)))
    return 1 << (int(affordable).bit_length() - 1)
