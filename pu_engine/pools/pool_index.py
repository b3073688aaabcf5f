"""The index of one shard: a row for each image that came while the shard was open, in order, good and bad ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

GOOD, BAD = "ok", "bad"
SCHEMA = pa.schema(
    [
        ("key", pa.string()),  # unique in the pool
        ("status", pa.string()),
        ("reason", pa.string()),  # why it is bad; "" for a good image
        ("offset", pa.int64()),  # of the image's first byte in the shard; null for a bad one
        ("size", pa.int64()),  # as stored; of a bad image as it came
        ("sha256", pa.binary(32)),  # of the stored bytes; null for a bad image
        ("source_sha256", pa.binary(32)),  # of the bytes as they came; null for one too large to be read
        ("format", pa.string()),  # as stored: "jpeg" or "png"; "" for a bad image
        ("width", pa.int32()),  # upright, as stored
        ("height", pa.int32()),
        ("phash", pa.uint64()),  # of the pixels as they came; null for a bad image
        ("duplicate_of", pa.string()),  # key of the first image with the same source_sha256
        ("near_duplicate_of", pa.string()),  # key of the earlier image that it looks like
    ]
)


def index_name(shard: str) -> str:
    """`shard-00000.arrow`."""
    return f"{shard}.arrow"


def write_index(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """One record batch in an Arrow file; the same rows give the same bytes."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist(list(rows), schema=SCHEMA))


def read_index(path: Path) -> pa.Table:
    """The table of one shard, mapped from its file.

    Raises:
        ValueError: it is no Arrow file, or of another schema.
    """
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
    if table.schema != SCHEMA:
        raise ValueError(f"{path.name} has other columns than an index of this version")
    return table
