"""Counts what protobuf bytes would become, before any message is built.

Empty nodes take two bytes in a file and hundreds in memory (10 MB of them: 0.8 GB once parsed), so a model's cost
is counted on its wire bytes. Which field holds which message is read from onnx's own descriptors.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from typing import Any

import onnx

from pu_engine.errors import EngineError
from pu_engine.guard import limits

FIXED_PAYLOAD = {"raw_data", "float_data", "double_data"}
VARINT_PAYLOAD = {"int32_data", "int64_data", "uint64_data"}
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
VARINT_BYTES = 10
IR_VERSION_FIELD = onnx.ModelProto.DESCRIPTOR.fields_by_name["ir_version"].number


@dataclass(slots=True)
class WireCounts:
    """What a scan found; `structure` is what is left of the bytes without weights."""

    fields: int = 0
    nodes: int = 0
    tensors: int = 0
    payload: int = 0
    varint_payload: int = 0
    structure: int = 0


@dataclass(slots=True)
class MessagePlan:
    """How to read one message type: its fields that hold messages, and those that hold weights."""

    name: str
    children: dict[int, MessagePlan] = field(default_factory=dict)
    fixed_payload: frozenset[int] = frozenset()
    varint_payload: frozenset[int] = frozenset()


def message_plan(descriptor: Any, known: dict[str, MessagePlan] | None = None) -> MessagePlan:
    """The plan of a message type and, shared between them, of all types below it."""
    known = {} if known is None else known
    if descriptor.full_name in known:
        return known[descriptor.full_name]
    plan = known[descriptor.full_name] = MessagePlan(name=descriptor.name)
    if descriptor.name == "TensorProto":
        plan.fixed_payload = frozenset(f.number for f in descriptor.fields if f.name in FIXED_PAYLOAD)
        plan.varint_payload = frozenset(f.number for f in descriptor.fields if f.name in VARINT_PAYLOAD)
    for item in descriptor.fields:
        if item.message_type is not None:
            plan.children[item.number] = message_plan(item.message_type, known)
    return plan


MODEL_PLAN = message_plan(onnx.ModelProto.DESCRIPTOR)


def scan(data: bytes) -> WireCounts:
    """Counts over a serialised ModelProto; stops at the first limit passed.

    Raises:
        EngineError: MODEL_MALFORMED where the bytes are no protobuf, MODEL_TOO_COMPLEX beyond a limit.
    """
    counts = WireCounts()
    position, end, plan = 0, len(data), MODEL_PLAN
    outer: list[tuple[int, MessagePlan]] = []
    while True:
        while position == end:
            if not outer:
                counts.structure = len(data) - counts.payload - counts.varint_payload
                _check(counts)
                return counts
            end, plan = outer.pop()
        tag, position = _varint(data, position, end)
        number, kind = tag >> 3, tag & 7
        counts.fields += 1
        if counts.fields > limits.FIELDS:
            raise _too_complex("protobuf fields", counts.fields, limits.FIELDS)
        if kind == VARINT:
            _, position = _varint(data, position, end)
        elif kind == LENGTH:
            size, position = _varint(data, position, end)
            if size > end - position:
                raise _malformed(position)
            child = plan.children.get(number)
            if child is None:
                _count_payload(counts, plan, number, size)
                position += size
                continue
            _count_message(counts, child, len(outer))
            outer.append((end, plan))
            end, plan = position + size, child
        elif kind in (FIXED32, FIXED64):
            position += 4 if kind == FIXED32 else 8
        else:
            raise _malformed(position)
        if position > end or number == 0:
            raise _malformed(position)


def declared_ir_version(data: bytes | mmap.mmap) -> int:
    """The IR version that a serialised ModelProto names, 0 for none; of several the last, as protobuf reads it.

    Args:
        data: bytes that `scan` let pass.
    """
    found, position = 0, 0
    while position < len(data):
        tag, position = _varint(data, position, len(data))
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, position = _varint(data, position, len(data))
            found = value if number == IR_VERSION_FIELD else found
        elif kind == LENGTH:
            size, position = _varint(data, position, len(data))
            position += size
        else:
            position += 4 if kind == FIXED32 else 8
    return found


def _varint(data: bytes | mmap.mmap, position: int, end: int) -> tuple[int, int]:
    if position < end and data[position] < 0x80:  # nearly all of them
        return data[position], position + 1
    value = 0
    for index in range(VARINT_BYTES):
        if position + index >= end:
            break
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise _malformed(position)


def _count_payload(counts: WireCounts, plan: MessagePlan, number: int, size: int) -> None:
    if number in plan.fixed_payload:
        counts.payload += size
    elif number in plan.varint_payload:
        counts.varint_payload += size


def _count_message(counts: WireCounts, plan: MessagePlan, depth: int) -> None:
    counts.nodes += plan.name == "NodeProto"
    counts.tensors += plan.name == "TensorProto"
    if counts.nodes > limits.NODES:
        raise _too_complex("nodes", counts.nodes, limits.NODES)
    if counts.tensors > limits.TENSORS:
        raise _too_complex("tensors", counts.tensors, limits.TENSORS)
    if depth >= limits.MESSAGE_DEPTH:
        raise _too_complex("nested messages", depth, limits.MESSAGE_DEPTH)


def _check(counts: WireCounts) -> None:
    if counts.structure > limits.STRUCTURE_BYTES:
        raise _too_complex("bytes that are not weights", counts.structure, limits.STRUCTURE_BYTES)
    if counts.varint_payload > limits.VARINT_PAYLOAD_BYTES:
        raise _too_complex("bytes of weights as varints", counts.varint_payload, limits.VARINT_PAYLOAD_BYTES)


def _too_complex(what: str, actual: int, limit: int) -> EngineError:
    return EngineError(
        "MODEL_TOO_COMPLEX",
        f"The model has more than {limit} {what}.",
        "Export a smaller graph: fold constants, and keep weights as raw data.",
        what=what,
        actual=actual,
        limit=limit,
    )


def _malformed(position: int) -> EngineError:
    return EngineError(
        "MODEL_MALFORMED",
        f"The file is not an ONNX model: no valid protobuf at byte {position}.",
        "Upload the .onnx file as the exporter wrote it.",
        position=position,
    )
