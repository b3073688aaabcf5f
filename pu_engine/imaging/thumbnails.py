"""Small copies of images for pages, encoded anew: nothing of a user's file but its pixels goes into a page."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from pu_engine.imaging.images import Pixels, resize

THUMBNAIL_PIXELS = 96
PNG_PIXELS = 32  # so few pixels would show JPEG's blocks
JPEG_QUALITY = 85


def thumbnail(image: Pixels, pixels: int = THUMBNAIL_PIXELS) -> str:
    """A small copy as a data URI.

    Args:
        image: [H, W, C] uint8, C is 1 or 3.
        pixels: longest side; smaller images stay as they are.
    """
    height, width, channels = image.shape
    scale = min(1.0, pixels / max(height, width))
    small = resize(image, max(1, round(height * scale)), max(1, round(width * scale)))
    picture = Image.fromarray(small[..., 0] if channels == 1 else np.ascontiguousarray(small))
    buffer = io.BytesIO()
    if max(picture.size) <= PNG_PIXELS:
        picture.save(buffer, "PNG")
        kind = "png"
    else:
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
