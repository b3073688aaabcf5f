"""A preprocessing as lines of Python that a user can run."""

from __future__ import annotations

from pu_engine.imaging.preprocessing import INTEGER_RANGES
from pu_engine.types import Preprocessing

FITS = {"stretch": "resized", "crop": "the centre (7/8 of the shorter side), resized"}


def value_range(preprocessing: Preprocessing) -> tuple[float, float]:
    """What the darkest and the brightest pixel become, over all channels."""
    ends = [
        (pixel * preprocessing.scale - mean) / std
        for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)
        for pixel in (0, 255)
    ]
    low, high = min(ends), max(ends)
    return low + 0.0, high + 0.0  # no minus zero


def recipe(preprocessing: Preprocessing) -> str:
    """Lines of Python that turn uint8 RGB (or gray) images into the model's input."""
    found = preprocessing
    shape = "[N, H, W, 1] uint8, gray" if found.channels == "GRAY" else "[N, H, W, 3] uint8, RGB"
    order = "[..., ::-1]" if found.channels == "BGR" else ""
    lines = [
        "import numpy as np",
        "",
        f"# pixels: {shape}, {FITS[found.fit]} to H = {found.height}, W = {found.width}",
        f"x = pixels{order}.astype(np.float32)",
        f"x = (x * {found.scale!r} - np.float32({list(found.mean)})) / np.float32({list(found.std)})",
    ]
    if found.layout == "NCHW":
        lines.append("x = x.transpose(0, 3, 1, 2)")
    elif found.layout == "flat":
        lines.append("x = x.reshape(len(x), -1)")
    if found.dtype in INTEGER_RANGES:
        low, high = INTEGER_RANGES[found.dtype]
        lines.append(f"x = np.clip(np.rint(x), {low}, {high}).astype(np.{found.dtype})")
    else:
        lines.append(f"x = np.ascontiguousarray(x, np.{found.dtype})")
    return "\n".join(lines)
