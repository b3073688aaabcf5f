"""What a model's functions come to once written out, by arithmetic: two calls on each of 24 levels are 16 million."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pu_engine.errors import EngineError
from pu_engine.guard import limits
from pu_engine.guard.graph_walk import bad_graph, plain_domain

FunctionKey = tuple[str, str, str]
CALL_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Cost:
    """Nodes and bytes after all calls are written out."""

    nodes: int
    size: int


@dataclass(slots=True)
class _Costs:
    functions: dict[FunctionKey, Any]
    known: dict[FunctionKey, Cost] = field(default_factory=dict)
    open: list[FunctionKey] = field(default_factory=list)

    def of_function(self, key: FunctionKey) -> Cost:
        if key in self.known:
            return self.known[key]
        if key in self.open or len(self.open) >= CALL_DEPTH:
            raise bad_graph(f"Function {key[1]!r} calls itself, or calls go deeper than {CALL_DEPTH}.")
        self.open.append(key)
        self.known[key] = self.of_nodes(self.functions[key].node)
        self.open.pop()
        return self.known[key]

    def of_nodes(self, nodes: Any) -> Cost:
        count = size = 0
        for node in nodes:
            key = _key(node.domain, node.op_type, node.overload)
            below = [self.of_function(key)] if key in self.functions else []
            below += [self.of_nodes(a.g.node) for a in node.attribute if a.HasField("g")]
            count += 1 + sum(cost.nodes for cost in below)
            size += node.ByteSize() + sum(cost.size for cost in below)
        return Cost(count, size)


def check(model: Any) -> Cost:
    """The cost of a model whose functions are written out.

    Raises:
        EngineError: MODEL_BAD_GRAPH for recursion or a function defined twice, MODEL_TOO_COMPLEX beyond the limits.
    """
    functions: dict[FunctionKey, Any] = {}
    for function in model.functions:
        key = _key(function.domain, function.name, function.overload)
        if key in functions:
            raise bad_graph(f"Function {key[1]!r} is defined twice.")
        functions[key] = function
    costs = _Costs(functions)
    for key in functions:
        costs.of_function(key)
    total = costs.of_nodes(model.graph.node)
    if total.nodes > limits.NODES or total.size > limits.MODEL_BYTES:
        raise EngineError(
            "MODEL_TOO_COMPLEX",
            f"With its functions written out the model has {min(total.nodes, 10**15)} nodes; "
            f"at most {limits.NODES} are taken.",
            "Export without nested functions.",
            limit=limits.NODES,
        )
    return total


def _key(domain: Any, name: Any, overload: Any) -> FunctionKey:
    return plain_domain(domain), name, overload
