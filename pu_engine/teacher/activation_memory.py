"""How much memory the tensors between a model's input and its scores take: a liveness sweep over observed shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from onnx import helper

from pu_engine.guard.graph_walk import graphs_of
from pu_engine.runtime import forward
from pu_engine.teacher.graph_surgery import INPUT, data_tensors, reads_of

# Operators whose output can share its input's memory, as it holds the same values in the same order.
VIEWS = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout")
ITEM_BYTES = {
    "float": 4, "float16": 2, "bfloat16": 2, "double": 8, "bool": 1,
    "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
}  # fmt: skip


def peak_live_bytes(model: Any, sizes: Mapping[str, int]) -> int:
    """Most bytes of data tensors that have to be held at once while the nodes run one by one, in the model's order.

    A tensor lives from the node that makes it to the last one that reads it; while a node runs, its inputs and its
    outputs live together. The model's input and output count. Weights, what is computed from weights alone, and the
    insides of subgraphs do not, nor do an operator's scratch memory and what a runtime saves by fusing operators or
    writing in place.

    Args:
        sizes: bytes of each data tensor and of the model's input; tensors that are missing do not count.
    """
    owner: dict[str, str] = {}  # view -> the tensor whose memory it shares
    for node in model.graph.node:
        if node.op_type in VIEWS and node.input[0] in sizes:
            owner[node.output[0]] = owner.get(node.input[0], node.input[0])
    last_use = {owner.get(n, n): index for index, node in enumerate(model.graph.node) for n in reads_of(node)}
    last_use |= {owner.get(item.name, item.name): len(model.graph.node) for item in model.graph.output}
    live = {item.name for item in model.graph.input if item.name in sizes}
    total = peak = sum(sizes[name] for name in live)
    for index, node in enumerate(model.graph.node):
        made = {name for name in node.output if name in sizes and name not in owner}
        live |= made
        total += sum(sizes[name] for name in made)
        peak = max(peak, total)
        touched = made | {owner.get(name, name) for name in reads_of(node)}
        dead = {name for name in touched & live if last_use.get(name, -1) <= index}
        live -= dead
        total -= sum(sizes[name] for name in dead)
    return peak


def observed_sizes(model: Any, rows: NDArray[Any], threads: int) -> dict[str, int]:
    """Bytes of every data tensor and of the input in a run on `rows`: the tensors themselves are not kept.

    Raises:
        EngineError: MODEL_BAD_GRAPH where the model can't be loaded or run.
    """
    data = data_tensors(model)
    names = [name for node in model.graph.node for name in node.output if name in data]
    typed = forward.stranger_session(forward.with_outputs(model, names), threads).get_outputs()
    items = {out.name: ITEM_BYTES.get(out.type.removeprefix("tensor(").removesuffix(")")) for out in typed}
    known = {name: size for name, size in items.items() if size is not None}  # sequences and maps have none
    measured = forward.with_outputs(model, [])
    taken = {name for graph in graphs_of(model.graph) for node in graph.node for name in (*node.input, *node.output)}
    prefix = "shape_"
    while any(name.startswith(prefix) for name in taken):
        prefix += "_"
    for index, name in enumerate(known):
        measured.graph.node.append(helper.make_node("Shape", [name], [f"{prefix}{index}"]))
    outputs = [f"{prefix}{index}" for index in range(len(known))]
    shapes = forward.observe(measured, outputs, rows, threads)
    sizes = {
        name: math.prod(int(d) for d in shapes[output]) * known[name]
        for name, output in zip(known, outputs, strict=True)
    }
    return sizes | {INPUT: int(rows.nbytes)}
