"""The static guard: a stranger's bytes become a canonical ModelProto, or a typed refusal, before any runtime sees them.

It narrows what onnxruntime and onnx's C++ get to see; the confined process contains what it lets through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx.inliner
from google.protobuf.message import DecodeError

from pu_engine.errors import EngineError
from pu_engine.guard import external_data, function_cost, graph_walk, limits, wire_scan

# (offset, bytes, what it is): formats that hold code, or that need a parser of their own.
FOREIGN_MAGIC = (
    (0, b"PK\x03\x04", "a zip archive (a PyTorch or Keras file?)"),
    (0, b"\x1f\x8b", "a gzip file"),
    (257, b"ustar", "a tar archive"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ", "an xz file"),
    (0, b"\x80\x02", "a pickle"),
    (0, b"\x80\x03", "a pickle"),
    (0, b"\x80\x04", "a pickle"),
    (0, b"\x80\x05", "a pickle"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x89HDF", "an HDF5 file (a Keras model?)"),
    (4, b"TFL3", "a TFLite model"),
    (0, b"ptrt", "a TensorRT engine"),
    (0, b"ftrt", "a TensorRT engine"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"SQLite format 3", "an SQLite file"),
    (0, b"\x7fELF", "a program"),
)
ORT_MAGIC = (4, b"ORTM")
DOMAIN_VERSIONS = {
    "": limits.OPSETS,
    "ai.onnx.ml": limits.ML_OPSETS,
    "com.microsoft": limits.MICROSOFT_OPSETS,
}
OPSET_BESIDE_ML = 15  # of a model that uses none of the standard operators
OLDEST_SEPARATE_INITIALIZERS_IR = 4  # up to IR 3, initializers had to be listed among the inputs


def vet(data: bytes, blobs: Mapping[str, bytes] | None = None, *, max_bytes: int = limits.MODEL_BYTES) -> Any:
    """The canonical model of a stranger's file: one self-contained ModelProto without metadata.

    `canonical_bytes(vet(data))` passes the guard again and stays the same.

    Args:
        data: the file. blobs: external data by the name under which the model refers to it.

    Raises:
        EngineError: UNSUPPORTED_FORMAT, or a MODEL_... code that says which rule was broken.
    """
    _check_format(data, max_bytes)
    wire_scan.scan(data)
    model = _parse(data)
    _import_standard_operators(model)
    _check_versions(model)
    if model.functions:
        model = _inlined(model)
    external_data.inline(model, blobs or {})
    _strip(model)
    graph_walk.check(model.graph, _opsets(model))
    _canonicalise(model)
    return model


def canonical_bytes(model: Any) -> bytes:
    """The bytes that everything after the guard reads."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def too_large(actual: int, limit: int) -> EngineError:
    """A file above the length cap; callers can ask the size before they read it."""
    return EngineError(
        "MODEL_TOO_LARGE",
        f"The model has {actual} bytes; at most {limit} are taken.",
        "Use a smaller teacher, or ask the operator to raise the limit.",
        actual=actual,
        limit=limit,
    )


def _check_format(data: bytes, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise too_large(len(data), max_bytes)
    for offset, magic, name in FOREIGN_MAGIC:
        if data[offset : offset + len(magic)] == magic:
            raise EngineError(
                "UNSUPPORTED_FORMAT",
                f"The teacher is {name}, not an ONNX model.",
                "Export the teacher to ONNX and upload the .onnx file.",
                format=name,
            )
    offset, magic = ORT_MAGIC
    if data[offset : offset + len(magic)] == magic:
        raise _malformed("The teacher is a file in onnxruntime's own format, not ONNX.")
    if not data:
        raise _malformed("The teacher's file is empty.")


def _parse(data: bytes) -> Any:
    try:
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError) as error:
        raise _malformed("The file is not an ONNX model: its protobuf message can't be read.") from error
    model.DiscardUnknownFields()
    if not model.HasField("graph"):
        raise _malformed("The file holds no graph, so it is no ONNX model.")
    return model


def _malformed(message: str) -> EngineError:
    return EngineError("MODEL_MALFORMED", message, "Upload the .onnx file as the exporter wrote it.")


def _opsets(model: Any) -> dict[str, int]:
    """Version by domain; quantisers list domains that no node uses, and some exporters a domain twice."""
    versions: dict[str, int] = {}
    for item in model.opset_import:
        domain = graph_walk.plain_domain(item.domain)
        if versions.setdefault(domain, item.version) != item.version:
            raise _opset_error(f"The model imports two versions of operator set {domain!r}.")
    return versions


def _opset_error(message: str) -> EngineError:
    low, high = limits.OPSETS
    return EngineError("MODEL_OPSET", message, f"Export with one operator set between {low} and {high}.")


def _import_standard_operators(model: Any) -> None:
    """XGBoost's converter imports ai.onnx.ml alone; what Punnet appends to its trees is of the standard operators."""
    used = graph_walk.domains_used(model.graph)
    if "ai.onnx.ml" in used and "" not in used and not model.functions and "" not in _opsets(model):
        model.opset_import.add(domain="", version=OPSET_BESIDE_ML)


def _check_versions(model: Any) -> None:
    low, high = limits.IR_VERSIONS
    if not low <= model.ir_version <= high:
        raise _opset_error(f"The model has IR version {model.ir_version}; {low} to {high} are read.")
    versions = _opsets(model)
    if "" not in versions:
        raise _opset_error("The model imports no version of the standard operators.")
    for domain, (first, last) in DOMAIN_VERSIONS.items():
        if domain in versions and not first <= versions[domain] <= last:
            raise _opset_error(
                f"The model imports version {versions[domain]} of {domain or 'ai.onnx'!r}; {first} to {last} are read."
            )


def _inlined(model: Any) -> Any:
    """The model with its functions written out, once their size is known to be bounded."""
    function_cost.check(model)
    try:
        flat = onnx.inliner.inline_local_functions(model, convert_version=False)
    except (RuntimeError, ValueError, DecodeError) as error:
        raise graph_walk.bad_graph("The model's functions can't be written out.") from error
    if flat.functions:
        raise graph_walk.bad_graph("A function of the model uses other operator sets than the model.")
    return flat


def _strip(model: Any) -> None:
    """Drop what no stage reads: texts, training graphs, and shapes that may lie."""
    for name in ("metadata_props", "doc_string", "training_info", "configuration", "domain", "model_version"):
        model.ClearField(name)
    for name in ("producer_name", "producer_version"):
        if not graph_walk.is_plain_name(getattr(model, name)):
            model.ClearField(name)
    for graph in graph_walk.graphs_of(model.graph):
        for name in ("doc_string", "metadata_props", "value_info", "quantization_annotation"):
            graph.ClearField(name)
        for item in (*graph.input, *graph.output, *graph.initializer):
            item.ClearField("doc_string")
            item.ClearField("metadata_props")
        for node in graph.node:
            for name in ("doc_string", "metadata_props", "device_configurations"):
                node.ClearField(name)
            for attribute in node.attribute:
                attribute.ClearField("doc_string")


def _canonicalise(model: Any) -> None:
    used = graph_walk.domains_used(model.graph)
    versions = _opsets(model)
    model.ClearField("opset_import")
    for domain in sorted(used | {""}):
        model.opset_import.add(domain=domain, version=versions[domain])
    model.ir_version = max(model.ir_version, OLDEST_SEPARATE_INITIALIZERS_IR)
    initializers = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in initializers]
    model.graph.ClearField("input")
    model.graph.input.extend(inputs)
