"""Which files beside an ONNX model hold its weights, read from the protobuf wire without the onnx package.

Field numbers are onnx.proto3's: ModelProto.graph 7, functions 25; GraphProto.node 1, initializer 5,
sparse_initializer 15; NodeProto.attribute 5; AttributeProto.t 5, g 6, tensors 10, graphs 11, sparse_tensor 22,
sparse_tensors 23; TensorProto.external_data 13 with key 1 and value 2; FunctionProto.node 7.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from punnet.errors import make_error

# Message -> field number -> message of that field; every other field is skipped.
FIELDS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
# protobuf's own limit on nesting
NESTING = 100
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

Buffer = bytes | mmap.mmap


def locations(model: Buffer) -> tuple[str, ...]:
    """The external data locations that a serialised ModelProto names, sorted, each once.

    Raises:
        ValueError: the bytes are not a protobuf message.
    """
    return tuple(sorted(set(_walk(model, 0, len(model), "model", NESTING))))


def external_files(teacher: Path) -> dict[str, Path]:
    """Location -> file beside the teacher, for every location that it names.

    A file that is no protobuf message names none: what it is instead, the appliance says.

    Raises:
        InvalidTeacher: MODEL_EXTERNAL_DATA where a location leaves the teacher's folder, goes through a link, or is
            missing. A model from a stranger could name any file of the user's otherwise.
    """
    if not teacher.stat().st_size:
        return {}
    with teacher.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as model:
        try:
            named = locations(model)
        except ValueError:
            return {}
    return {location: _beside(teacher, location) for location in named}


def _beside(teacher: Path, location: str) -> Path:
    pure = PurePosixPath(location)
    file = teacher.parent / location
    within = [teacher.parent.joinpath(*pure.parts[: n + 1]) for n in range(len(pure.parts))]
    if pure.is_absolute() or ".." in pure.parts or "\\" in location or any(p.is_symlink() for p in within):
        raise make_error(
            "MODEL_EXTERNAL_DATA",
            f"{teacher.name} keeps weights in {location!r}, which is not a plain file below its own folder.",
            "Save the model with its external data beside it.",
            {"location": location},
        )
    if not file.is_file():
        raise make_error(
            "MODEL_EXTERNAL_DATA",
            f"{teacher.name} keeps weights in {location!r}, which is not in the folder {teacher.parent.resolve()}.",
            "Put that file beside the model.",
            {"location": location},
        )
    return file


def _walk(data: Buffer, start: int, end: int, message: str, depth: int) -> Iterator[str]:
    if not depth:
        raise ValueError(f"messages are nested more than {NESTING} deep")
    for number, first, last in _fields(data, start, end):
        inner = FIELDS[message].get(number)
        if inner == "entry":
            entry = {n: bytes(data[a:b]) for n, a, b in _fields(data, first, last)}
            if entry.get(1) == b"location":
                yield entry.get(2, b"").decode()
        elif inner:
            yield from _walk(data, first, last, inner, depth - 1)


def _fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field of one message; other fields are passed over."""
    while start < end:
        tag, start = _varint(data, start, end)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            _, start = _varint(data, start, end)
            continue
        if wire == _BYTES:
            size, start = _varint(data, start, end)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {start}")
        if start + size > end:
            raise ValueError(f"a field ends {start + size - end} bytes beyond its message")
        if wire == _BYTES:
            yield number, start, start + size
        start += size


def _varint(data: Buffer, start: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            break
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
    raise ValueError(f"a number is cut off at byte {start}")
