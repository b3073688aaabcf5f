"""One member of a tar looked at once: is it an image, what does it show, and which bytes are stored of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import simplejpeg

from pu_engine.errors import EngineError
from pu_engine.imaging.archive import Member
from pu_engine.imaging.images import JPEG_START, MAX_BYTES, Pixels, decode, resize
from pu_engine.imaging.perceptual_hash import perceptual_hash
from pu_engine.pools.pool_types import Shrink

REASON_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedImage:
    """What ingest knows of a member; `reason` is empty where the image is good."""

    name: str
    source_size: int
    source_sha256: bytes | None
    data: bytes = b""  # to store
    sha256: bytes | None = None
    height: int = 0
    width: int = 0
    phash: int | None = None
    reason: str = ""

    @property
    def format(self) -> str:
        """Of the bytes to store."""
        return ("jpeg" if self.data.startswith(JPEG_START) else "png") if self.data else ""


def check_image(member: Member, shrink: Shrink | None) -> CheckedImage:
    """Decode a member in full; whatever is wrong with it becomes the reason.

    Args:
        shrink: where the image's short side is longer, it is stored smaller, upright and as JPEG.
    """
    name, size = member.name, member.size
    if member.data is None:
        reason = f"The image has {size} bytes; at most {MAX_BYTES} are taken."
        return CheckedImage(name=name, source_size=size, source_sha256=None, reason=reason)
    source_sha256 = hashlib.sha256(member.data).digest()
    if not member.data:
        return CheckedImage(name=name, source_size=0, source_sha256=source_sha256, reason="The file is empty.")
    try:
        pixels = decode(member.data, 3)
    except EngineError as error:
        reason = error.message[:REASON_CHARACTERS]
        return CheckedImage(name=name, source_size=size, source_sha256=source_sha256, reason=reason)
    phash, data, sha256 = perceptual_hash(pixels), member.data, source_sha256
    if shrink is not None and min(pixels.shape[:2]) > shrink.short_side:
        pixels, data = _shrunk(pixels, shrink)
        sha256 = hashlib.sha256(data).digest()
    return CheckedImage(
        name=name,
        source_size=size,
        source_sha256=source_sha256,
        data=data,
        sha256=sha256,
        height=pixels.shape[0],
        width=pixels.shape[1],
        phash=phash,
    )


def _shrunk(pixels: Pixels, shrink: Shrink) -> tuple[Pixels, bytes]:
    height, width = pixels.shape[:2]
    scale = shrink.short_side / min(height, width)
    # Rounded to at least one pixel; an image of 1 x 10,000 has a short side that is never longer.
    smaller = np.ascontiguousarray(resize(pixels, max(1, round(height * scale)), max(1, round(width * scale))))
    data: bytes = simplejpeg.encode_jpeg(smaller, quality=shrink.quality, colorsubsampling="420", fastdct=False)
    return smaller, data
