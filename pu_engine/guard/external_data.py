"""Weights kept beside the model: every reference must name an uploaded blob, whose bytes move into the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import onnx

from pu_engine.errors import EngineError
from pu_engine.guard import limits

KNOWN_KEYS = {"location", "offset", "length", "checksum", "basepath"}
EXTERNAL = onnx.TensorProto.EXTERNAL


def tensors_of(model: Any) -> Iterator[Any]:
    """Every TensorProto of a model: initializers, attributes, subgraphs and functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _graph_tensors(graph)


def inline(model: Any, blobs: Mapping[str, bytes]) -> None:
    """Move external data into the model, in place.

    Args:
        blobs: bytes of the uploaded files by the name under which the model refers to them.

    Raises:
        EngineError: MODEL_EXTERNAL_DATA for a reference without a blob or outside of one; MODEL_TOO_LARGE.
    """
    total = 0
    for tensor in tensors_of(model):
        if tensor.data_location != EXTERNAL and not tensor.external_data:
            continue
        # Many tensors may point at the same bytes, so the sum is bounded, not the blobs.
        data = _referenced(tensor, blobs)
        total += len(data)
        if total > limits.MODEL_BYTES:
            raise EngineError(
                "MODEL_TOO_LARGE",
                f"The model's external data comes to more than {limits.MODEL_BYTES} bytes.",
                "Use a smaller teacher, or ask the operator to raise the limit.",
                limit=limits.MODEL_BYTES,
            )
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = data


def _referenced(tensor: Any, blobs: Mapping[str, bytes]) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location")
    if set(entries) - KNOWN_KEYS or location is None:
        raise _refuse("A tensor refers to external data in an unknown way.", keys=sorted(map(repr, entries)))
    if location not in blobs:
        raise _refuse(
            f"The model keeps weights in the file {location!r}, which was not uploaded with it.",
            location=repr(location),
        )
    blob = blobs[location]
    offset, length = _number(entries.get("offset", "0")), _number(entries.get("length", ""), len(blob))
    if "length" not in entries:
        length = len(blob) - offset
    if not 0 <= offset <= offset + length <= len(blob):
        raise _refuse(
            f"A tensor lies outside of {location!r}: offset {offset}, length {length} of {len(blob)} bytes.",
            location=repr(location),
        )
    return blob[offset : offset + length]


def _number(text: Any, default: int = 0) -> int:
    if text == "":
        return default
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > 18:
        raise _refuse(f"{text!r} is no offset or length of external data.")
    return int(text)


def _refuse(message: str, **details: object) -> EngineError:
    return EngineError(
        "MODEL_EXTERNAL_DATA",
        message,
        "Upload the data files under the names that the model uses, or save the model as one file.",
        **details,
    )
