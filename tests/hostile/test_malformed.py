"""Bytes that are no model, hold no model, or are a format that holds code: refused by name, before any parser."""

from __future__ import annotations

import gzip
import io
import pickle
import sqlite3
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pu_engine import intake
from pu_engine.errors import EngineError
from pu_engine.guard import static_guard
from pu_engine.guard.limits import MODEL_BYTES
from pu_engine.types import File, IntakeInputs, LabelledImages
from tests.hostile.refusals import code_of, edited

BENIGN: bytes = edited(lambda model: None).SerializeToString()


def zipped() -> bytes:
    """What torch.save, numpy.savez and Keras write."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(print))
    return target.getvalue()


def tarred() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("model.onnx"))
    return target.getvalue()


def saved_array() -> bytes:
    target = io.BytesIO()
    np.save(target, np.array([print], dtype=object), allow_pickle=True)
    return target.getvalue()


def arrow() -> bytes:
    table, target = pa.table({"a": [1]}), io.BytesIO()
    with pa.ipc.new_file(target, table.schema) as writer:
        writer.write_table(table)
    return target.getvalue()


def parquet() -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.table({"a": [1]}), target)
    return target.getvalue()


def database() -> bytes:
    with sqlite3.connect(":memory:") as connection:
        connection.execute("create table t (a)")
        data: bytes = connection.serialize()
    connection.close()
    return data


FORMATS = {
    "zip": zipped(),
    "gzip": gzip.compress(BENIGN),
    "tar": tarred(),
    "npy": saved_array(),
    "arrow": arrow(),
    "parquet": parquet(),
    "sqlite": database(),
    "engine": b"ptrt" + bytes(64),
    "rtx engine": b"ftrt" + bytes(64),
    "tflite": b"\x1c\0\0\0TFL3" + bytes(64),
    "keras": b"\x89HDF\r\n\x1a\n" + bytes(64),
    "program": b"\x7fELF" + bytes(64),
    **{f"pickle {protocol}": pickle.dumps(print, protocol) for protocol in range(2, 6)},
}
GARBAGE = {
    "nothing": b"",
    "zeros": bytes(64),
    "text": b"import os; os.system('true')\n",
    "ort format": b"\x1c\0\0\0ORTM" + bytes(64),
    "old pickle": pickle.dumps(print, 0),
    "cut model": BENIGN[:-9],
    "no graph": onnx.ModelProto(ir_version=8).SerializeToString(),
    "group tags": b"\x0b" * 64,
    "endless varint": b"\x08" + b"\xff" * 64,
    "length beyond the end": b"\x3a\xff\xff\xff\xff\x07",
}


@pytest.mark.parametrize("name", FORMATS)
def test_format_that_holds_code_is_refused_by_name(name: str) -> None:
    assert code_of(FORMATS[name]) == "UNSUPPORTED_FORMAT"


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_malformed(name: str) -> None:
    assert code_of(GARBAGE[name]) == "MODEL_MALFORMED"


def test_model_passes() -> None:
    assert code_of(BENIGN) == ""


def test_unknown_fields_are_dropped() -> None:
    unknown = BENIGN + b"\xfa\x7f\x06secret"
    assert static_guard.canonical_bytes(static_guard.vet(unknown)) == static_guard.canonical_bytes(
        static_guard.vet(BENIGN)
    )


def test_size_is_asked_before_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with open(path, "wb") as file:
        file.truncate(2_300_000_000)  # sparse; read, it would be as much memory
    inputs = IntakeInputs(teacher=File(path=str(path), sha256="0" * 64), images=LabelledImages())
    with pytest.raises(EngineError) as caught:
        intake._vetted(inputs)
    assert caught.value.code == "MODEL_TOO_LARGE"
    assert caught.value.details == {"actual": "2300000000", "limit": str(MODEL_BYTES)}
