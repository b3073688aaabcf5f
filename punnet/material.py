"""From files of the user to what a request names: blobs to upload, and the messages that name them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from punnet.archive import LabelledSource, pack_images, pack_labelled
from punnet.errors import make_error
from punnet.external_data import external_files, locations
from punnet.options import CompressOptions
from punnet.transfer import Blob, blob_of
from punnet.v1 import compression_pb2, options_pb2

DISPLAY_NAME_CHARACTERS = 200

Teacher = Path | str | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """A teacher and labelled images, ready to be named; `blobs` are what has to be uploaded."""

    teacher: options_pb2.Teacher
    images: options_pb2.LabelledImages
    blobs: tuple[Blob, ...]


def gather_material(
    teacher: Teacher,
    images: LabelledSource,
    *,
    scratch: Path,
    class_names: tuple[str, ...] = (),
    taps: tuple[str, ...] = (),
    external_data: Mapping[str, Path | bytes] | None = None,
) -> Material:
    """Hashes the teacher with its external data and packs the images into a tar under `scratch`.

    Raises:
        InvalidTeacher: MODEL_MALFORMED where there is no such file; MODEL_EXTERNAL_DATA for a location that is missing.
        InvalidImages: as `archive.pack_labelled` says.
    """
    source = teacher if isinstance(teacher, bytes) else Path(teacher)
    if isinstance(source, Path) and not source.is_file():
        what = f"{source} is a folder." if source.is_dir() else f"There is no file {source}."
        raise make_error("MODEL_MALFORMED", what, "Give the path of an .onnx file.", {"path": str(source)})
    model = blob_of(source)
    data = {location: blob_of(file) for location, file in _external(source, external_data).items()}
    tar = scratch / "images.tar"
    pack_labelled(images, tar)
    packed = blob_of(tar)
    return Material(
        teacher=options_pb2.Teacher(
            sha256=model.sha256,
            external_data={location: blob.sha256 for location, blob in data.items()},
            display_name=source.name[:DISPLAY_NAME_CHARACTERS] if isinstance(source, Path) else "",
            class_names=class_names,
            taps=taps,
        ),
        images=options_pb2.LabelledImages(tar=options_pb2.TarBlob(sha256=packed.sha256)),
        blobs=(model, *data.values(), packed),
    )


def more_blobs(request: compression_pb2.CompressRequest, options: CompressOptions, scratch: Path) -> list[Blob]:
    """First weights and images to exclude, named in the request; the images are packed into a tar under `scratch`.

    Raises:
        InvalidRequest, InvalidImages: as `weights_blob` and `archive.pack_images` say.
    """
    found = []
    weights, excluded = options.get("student_weights"), options.get("excluded")
    if weights:
        found.append(weights_blob(weights))
        request.student.weights_sha256 = found[-1].sha256
    if excluded:
        pack_images(Path(excluded), scratch / "excluded.tar")
        found.append(blob_of(scratch / "excluded.tar"))
        request.selection.excluded_sha256 = found[-1].sha256
    return found


def weights_blob(path: Path | str) -> Blob:
    """A student's first weights.

    Raises:
        InvalidRequest: REQUEST_INVALID where there is no such file.
    """
    if not Path(path).is_file():
        raise make_error(
            "REQUEST_INVALID", f"There is no file {path}.", "Give the path of a .safetensors file.", {"path": str(path)}
        )
    return blob_of(Path(path))


def _external(source: Path | bytes, stated: Mapping[str, Path | bytes] | None) -> Mapping[str, Path | bytes]:
    if stated is not None:
        return stated
    if isinstance(source, Path):
        return external_files(source)
    try:
        named = locations(source)
    except ValueError:  # not a protobuf message: the appliance says what it is instead
        return {}
    if named:
        raise make_error(
            "MODEL_EXTERNAL_DATA",
            f"The model keeps weights in {named[0]!r}, and bytes have no folder to look in.",
            "Give the model's path, or `external_data` with a file for each location.",
            {"location": named[0]},
        )
    return {}
