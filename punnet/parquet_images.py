"""Images of a Parquet file in the Hugging Face layout: a column of struct{bytes, path}, or of bytes.

The file is read here, on the user's machine and with the user's rights, and only the images travel: the appliance
takes no Parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from punnet.archive import Member
from punnet.errors import make_error

PARQUET_SUFFIX = ".parquet"
PREFERRED_COLUMN = "image"
BATCH_ROWS = 64
PNG_START = b"\x89PNG"
KNOWN_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")


def parquet_members(file: Path, name: str) -> Iterator[Member]:
    """Members `<name>/<row>.<suffix>`, one a row, in the order of the rows.

    The suffix is that of the row's path, or follows from the bytes. What is no image is sent as one, so that ingest
    counts it.

    Raises:
        InvalidPool: POOL_INVALID where pyarrow is missing, the file is damaged, has no column of images or several,
            or a row has no bytes.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise make_error(
            "POOL_INVALID",
            f"{file} is a Parquet file, and pyarrow is not installed.",
            'Install it: pip install "punnet[parquet]".',
            {"path": str(file)},
        ) from error
    row = 0
    try:
        with pq.ParquetFile(file) as table:
            column = _image_column(file, table.schema_arrow)
            for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield _member(file, name, row, value)
                    row += 1
    # pyarrow also has plain OSErrors for damaged pages, and a path's text is decoded as it is read
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise make_error(
            "POOL_INVALID",
            f"{file} can't be read as Parquet behind row {row}: {error}",
            "Fetch or write the file again.",
            {"path": str(file)},
        ) from error


def _image_column(file: Path, schema: Any) -> str:
    """The column `image` where it holds images, else the only one that does."""
    import pyarrow as pa

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_images(field.type)]
    if PREFERRED_COLUMN in found:
        return PREFERRED_COLUMN
    if len(found) != 1:
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise make_error(
            "POOL_INVALID",
            f"{file} has {len(found)} columns that may hold images, not one, and none called {PREFERRED_COLUMN!r}.",
            f"Write a file with one column of struct{{bytes, path}} or of bytes. Its columns: {columns[:500]}",
            {"path": str(file)},
        )
    return str(found[0])


def _member(file: Path, name: str, row: int, value: Any) -> Member:
    path, data = (value.get("path"), value["bytes"]) if isinstance(value, dict) else (None, value)
    if data is None:
        raise make_error(
            "POOL_INVALID",
            f"Row {row} of {file} holds no bytes of an image.",
            "Embed the images in the file (`embed_external_files` of datasets), or give the image files themselves.",
            {"path": str(file), "row": str(row)},
        )
    suffix = PurePosixPath(path).suffix.lower() if isinstance(path, str) else ""
    if suffix not in KNOWN_SUFFIXES:
        suffix = ".png" if data.startswith(PNG_START) else ".jpg"
    return Member(name=f"{name}/{row:08}{suffix}", source=data)
