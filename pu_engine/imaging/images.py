"""Images from bytes: a header gate before any decoder, one decoding, one resize kernel, one matched view."""

from __future__ import annotations

import io
import math
import warnings
from typing import Literal

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pu_engine.errors import EngineError
from pu_engine.imaging.jpeg_header import STANDARD_LUMINANCE, JpegHeader, read_jpeg_header

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 25_000_000
MAX_SCANS = 32  # 100 kB with 210 scans took 3.2 s to decode
JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
PNG_HEADER_BYTES = 33
EXIF_START = b"Exif\0\0"
ORIENTATION_TAG = 0x0112
TRANSPOSED = 5  # and above: rows become columns
SCALED_MARGIN = 3  # at 2 a photograph shrunk to 32 x 32 differed by 1.4 levels in the mean, at 4 by 0.5
LEAST_SCALING = 2.0  # below, scaled decoding takes longer than full decoding
CMYK_COMPONENTS = 4
SUBSAMPLING = {"4:4:4": "444", "4:2:2": "422", "4:2:0": "420", "4:4:0": "440", "4:1:1": "411", "gray": "Gray"}
RGB, GRAY = 3, 1
CROP_SHARE = 7 / 8  # of the shorter side, as ImageNet classifiers are evaluated

# libjpeg's scale: below 50 the table grows by 50 / quality, above it shrinks linearly to ones.
_SCALES = np.array([5000 // quality if quality < 50 else 200 - 2 * quality for quality in range(1, 101)])
LUMINANCE_TABLES = ((np.outer(_SCALES, STANDARD_LUMINANCE) + 50) // 100).clip(1, 255)  # [100, 64], zigzag order

# Pillow only warns of a decompression bomb or a broken chunk. The filter is the process's, because
# `warnings.catch_warnings` is not safe among decoding threads.
warnings.filterwarnings("error", module=r"PIL\.")

Pixels = NDArray[np.uint8]


def is_image(data: bytes) -> bool:
    """Whether bytes begin like a JPEG or a PNG."""
    return data.startswith((JPEG_START, PNG_START))


def dimensions(data: bytes) -> tuple[int, int]:
    """Height and width by the header, before the EXIF orientation; nothing is decoded.

    Raises:
        EngineError: IMAGE_REJECTED for another format, a malformed header or one above a limit.
    """
    height, width, _ = _gate(data)
    return height, width


def decode(data: bytes, channels: int) -> Pixels:
    """Pixels of a JPEG or PNG, upright. Of an animated PNG, its default image.

    The EXIF orientation is applied, transparency is dropped, 16 bits are cut to the upper 8.

    Args:
        channels: 1 (luma) or 3 (RGB).

    Returns:
        [H, W, channels] uint8, contiguous.

    Raises:
        EngineError: IMAGE_REJECTED for what the header gate refuses or the decoder finds damaged.
    """
    return _decode(data, channels, target=None)


def resize(image: Pixels, height: int, width: int) -> Pixels:
    """The one resize kernel: Pillow's antialiased bilinear on uint8; an equal size is returned as it is.

    Args:
        image: [H, W, C], C is 1 or 3.

    Returns:
        [height, width, C] uint8; the aspect ratio is not kept.
    """
    if image.shape[:2] == (height, width):
        return image
    source = Image.fromarray(image[..., 0] if image.shape[2] == GRAY else image)
    resized = np.asarray(source.resize((width, height), Image.Resampling.BILINEAR))
    return resized.reshape(height, width, image.shape[2])


def decode_resized(data: bytes, height: int, width: int, channels: int, fit: str = "stretch") -> Pixels:
    """`decode`, then `resize` of the whole image, or of its centre where `fit` is "crop": [height, width, channels].

    A JPEG that is at least twice SCALED_MARGIN times as large on both sides is decoded at a fraction of its size (only
    the lower frequencies of each block), which differs a little from the full decoding: on 60 photographs shrunk to
    32 x 32 by 0.7 levels in the mean, 2.7 at worst, and it took half the time.

    Raises:
        EngineError: IMAGE_REJECTED, as `decode` does.
    """
    seen = CROP_SHARE if fit == "crop" else 1.0
    image = _decode(data, channels, target=(math.ceil(height / seen), math.ceil(width / seen)))
    return resize(crop_centre(image, height, width) if fit == "crop" else image, height, width)


def crop_centre(image: Pixels, height: int, width: int) -> Pixels:
    """The centre of an image that is seen when it is cut, not stretched, to height x width.

    It is what a resize of the shorter side to 8/7 and a crop of the centre would leave, to a pixel.

    Returns:
        [h, w, C] uint8, a view, with the aspect ratio of height x width.
    """
    rows, columns = image.shape[:2]
    unit = CROP_SHARE * min(rows / height, columns / width)
    h, w = max(1, round(height * unit)), max(1, round(width * unit))
    top, left = (rows - h) // 2, (columns - w) // 2
    return image[top : top + h, left : left + w]


def jpeg_quality(data: bytes) -> tuple[int, str] | None:
    """Quality (1 to 100, on libjpeg's scale) and chroma ("4:2:0", "gray", ...) of a JPEG; None for other formats.

    The quality is the one whose scaled luminance table (ITU T.81, K.1) is nearest to the file's.

    Raises:
        EngineError: IMAGE_REJECTED, as `dimensions` does.
    """
    _, _, header = _gate(data)
    if header is None:
        return None
    distances = np.abs(LUMINANCE_TABLES - np.array(header.luminance_table)).sum(axis=1)
    return 1 + int(np.argmin(distances)), header.chroma


def reencode(image: Pixels, quality: int, chroma: str) -> Pixels:
    """The matched view: an image as JPEG of this quality and chroma shows it.

    Args:
        image: [H, W, C] uint8; a gray one (C = 1) has no chroma.
        chroma: as `jpeg_quality` says it; what JPEG encoders here lack is taken as "4:2:0".
    """
    gray = image.shape[2] == GRAY
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(image),
        quality=quality,
        colorspace="GRAY" if gray else "RGB",
        colorsubsampling="Gray" if gray else SUBSAMPLING.get(chroma, "420"),
        fastdct=False,
    )
    return _decode_jpeg(data, image.shape[2])


def rejected(message: str, remedy: str = "Replace or leave out this image.", **details: object) -> EngineError:
    """The error of an image that is not taken."""
    return EngineError("IMAGE_REJECTED", message, remedy, **details)


def _gate(data: bytes) -> tuple[int, int, JpegHeader | None]:
    if len(data) > MAX_BYTES:
        raise rejected(f"The image has {len(data)} bytes; at most {MAX_BYTES} are taken.", limit=MAX_BYTES)
    header = None
    if data.startswith(JPEG_START):
        try:
            header = read_jpeg_header(data, MAX_SCANS)
        except ValueError as error:
            raise rejected(f"The JPEG is not taken: {error}.") from error
        height, width = header.height, header.width
    elif data.startswith(PNG_START):
        height, width = _png_size(data)
    else:
        raise rejected("The image is neither JPEG nor PNG.", "Convert it to JPEG or PNG.")
    if not 0 < height * width <= MAX_PIXELS:
        raise rejected(f"The image claims {width} x {height} pixels; 1 to {MAX_PIXELS} are taken.", limit=MAX_PIXELS)
    return height, width, header


def _decode(data: bytes, channels: int, target: tuple[int, int] | None) -> Pixels:
    """Upright pixels, of a large JPEG no more than are needed for `target` (height, width)."""
    if channels not in (GRAY, RGB):
        raise ValueError(f"channels is 1 or 3, not {channels}")
    _, _, header = _gate(data)
    if header is None or header.components == CMYK_COMPONENTS:
        pixels, exif = _decode_pillow(data, channels)
        return np.ascontiguousarray(_upright(pixels, _orientation(exif)))
    orientation = _orientation(header.exif)
    if target is not None and orientation >= TRANSPOSED:
        target = target[1], target[0]
    return np.ascontiguousarray(_upright(_decode_jpeg(data, channels, target), orientation))


def _png_size(data: bytes) -> tuple[int, int]:
    if len(data) < PNG_HEADER_BYTES or data[8:16] != b"\0\0\0\x0dIHDR":
        raise rejected("The PNG has no header chunk.")
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")


def _decode_jpeg(data: bytes, channels: int, target: tuple[int, int] | None = None) -> Pixels:
    """Pixels as stored; with `target` (height, width) not many more than SCALED_MARGIN times it, where that saves."""
    least_height, least_width = (SCALED_MARGIN * side for side in target) if target else (0, 0)
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(
            data,
            colorspace="GRAY" if channels == GRAY else "RGB",
            min_height=least_height,
            min_width=least_width,
            min_factor=LEAST_SCALING if target else 1.0,
            strict=True,
        )
    except ValueError as error:
        raise rejected(f"The JPEG is damaged: {error}.") from error
    return pixels


def _decode_pillow(data: bytes, channels: int) -> tuple[Pixels, bytes]:
    """Pixels as stored, and the EXIF block."""
    mode = "L" if channels == GRAY else "RGB"
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            image.load()
            exif = image.info.get("exif", b"")
            if image.mode.startswith("I"):
                upper = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                converted = Image.fromarray(upper).convert(mode)
            elif image.mode == "P":
                # Pillow warns when a palette with transparency goes to RGB in one step.
                converted = image.convert("RGBA").convert(mode)
            else:
                converted = image.convert(mode)
    except (OSError, ValueError, SyntaxError, EOFError, Warning, Image.DecompressionBombError) as error:
        raise rejected(f"The image is damaged: {type(error).__name__}: {error}.") from error
    pixels = np.asarray(converted)
    return pixels.reshape(pixels.shape[0], pixels.shape[1], channels), exif


def _orientation(exif: bytes) -> int:
    """The orientation tag (1 to 8) of an EXIF block's first directory; 1 where there is none that makes sense."""
    tiff = exif.removeprefix(EXIF_START)
    if tiff[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(tiff[start : start + size], order)

    directory = number(4, 4)
    for entry in range(directory + 2, min(directory + 2 + 12 * number(directory, 2), len(tiff) - 11), 12):
        if number(entry, 2) == ORIENTATION_TAG:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def _upright(image: Pixels, orientation: int) -> Pixels:
    """[H, W, C] as the EXIF standard's eight orientations want it shown."""
    if orientation >= TRANSPOSED:
        image = image.transpose(1, 0, 2)
    flip_rows, flip_columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
