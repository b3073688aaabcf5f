"""Junk that a crawl brings in, as 64 x 64 JPEG files: the families that are reported, and others to develop on."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SIDE = 64
LEAST_QUALITY, MOST_QUALITY = 70, 96
LETTERS = "abcdefghijklmnopqrstuvwxyz      ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:;-"

Pixels = NDArray[np.uint8]
Family = Callable[[Pixels, np.random.Generator], Pixels]


def files(part: str, sources: Sequence[Pixels], count: int, generator: np.random.Generator) -> Iterator[bytes]:
    """`count` JPEG files, the families of a part in turn, each on a random one of the source images [64, 64, 3]."""
    families = FAMILIES[part]
    for number in range(count):
        source = sources[int(generator.integers(len(sources)))]
        made = families[number % len(families)](source, generator)
        file = io.BytesIO()
        Image.fromarray(made).save(file, "JPEG", quality=int(generator.integers(LEAST_QUALITY, MOST_QUALITY)))
        yield file.getvalue()


def noise(_: Pixels, generator: np.random.Generator) -> Pixels:
    """Noise of a random grain and contrast."""
    grain = int(generator.choice([1, 2, 4, 8]))
    small = generator.normal(128, generator.uniform(20, 80), (SIDE // grain, SIDE // grain, 3))
    return _bytes(small.repeat(grain, axis=0).repeat(grain, axis=1))


def gradient(_: Pixels, generator: np.random.Generator) -> Pixels:
    """A smooth change from one colour to another."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    angle = generator.uniform(0, 2 * np.pi)
    level = ((np.cos(angle) * x + np.sin(angle) * y) % 1.0)[..., None]
    first, second = generator.uniform(0, 255, (2, 3))
    return _bytes(first * level + second * (1 - level))


def text(_: Pixels, generator: np.random.Generator) -> Pixels:
    """Lines of letters on a plain ground."""
    image = Image.new("RGB", (SIDE, SIDE), _colour(generator, 150, 256))
    draw = ImageDraw.Draw(image)
    for top in range(2, SIDE, int(generator.integers(9, 14))):
        line = "".join(generator.choice(list(LETTERS), int(generator.integers(3, 13))))
        draw.text((2, top), line, fill=_colour(generator, 0, 110))
    return np.asarray(image)


def screenshot(source: Pixels, generator: np.random.Generator) -> Pixels:
    """Bars, panels, a line of letters and a small picture."""
    image = Image.new("RGB", (SIDE, SIDE), _colour(generator, 190, 256))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, SIDE, int(generator.integers(5, 12))), fill=_colour(generator, 0, 200))
    for _ in range(int(generator.integers(2, 6))):
        left, top = generator.integers(0, SIDE - 16, 2)
        width, height = generator.integers(8, 40, 2)
        draw.rectangle(
            (left, top, left + width, top + height), outline=(120, 120, 120), fill=_colour(generator, 0, 256)
        )
    draw.text((3, int(generator.integers(12, 50))), "".join(generator.choice(list(LETTERS), 9)), fill=(20, 20, 20))
    image.paste(Image.fromarray(source).resize((20, 20)), tuple(generator.integers(0, SIDE - 20, 2).tolist()))
    return np.asarray(image)


def heavy_blur(source: Pixels, generator: np.random.Generator) -> Pixels:
    """A picture of which only patches of colour are left."""
    return np.asarray(Image.fromarray(source).filter(ImageFilter.GaussianBlur(generator.uniform(5, 10))))


def negative(source: Pixels, _: np.random.Generator) -> Pixels:
    """Light for dark."""
    return np.asarray(255 - source)


def channel_swap(source: Pixels, generator: np.random.Generator) -> Pixels:
    """Colours in another order."""
    return np.ascontiguousarray(source[..., [(1, 2, 0), (2, 0, 1), (1, 0, 2)][generator.integers(3)]])


def tiling(source: Pixels, generator: np.random.Generator) -> Pixels:
    """The picture small, again and again."""
    times = int(generator.choice([2, 4]))
    small = np.asarray(Image.fromarray(source).resize((SIDE // times, SIDE // times)))
    return np.tile(small, (times, times, 1))


def jigsaw(source: Pixels, generator: np.random.Generator) -> Pixels:
    """The picture's squares in another order."""
    side = SIDE // int(generator.choice([2, 4]))
    squares = [source[y : y + side, x : x + side] for y in range(0, SIDE, side) for x in range(0, SIDE, side)]
    order = generator.permutation(len(squares))
    across = SIDE // side
    rows = [np.concatenate([squares[i] for i in order[k : k + across]], axis=1) for k in range(0, len(order), across)]
    return np.concatenate(rows)


def grating(_: Pixels, generator: np.random.Generator) -> Pixels:
    """Stripes."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    angle, waves = generator.uniform(0, np.pi), generator.uniform(2, 16)
    level = (0.5 + 0.5 * np.sin(2 * np.pi * waves * (np.cos(angle) * x + np.sin(angle) * y)))[..., None]
    first, second = generator.uniform(0, 255, (2, 3))
    return _bytes(first * level + second * (1 - level))


def code(_: Pixels, generator: np.random.Generator) -> Pixels:
    """Black and white cells, like a printed code."""
    cell = int(generator.choice([2, 4]))
    bits = generator.integers(0, 2, (SIDE // cell, SIDE // cell)).repeat(cell, axis=0).repeat(cell, axis=1) * 255
    return _bytes(np.stack([bits] * 3, axis=-1))


def polygons(_: Pixels, generator: np.random.Generator) -> Pixels:
    """Flat shapes over each other."""
    image = Image.new("RGB", (SIDE, SIDE), _colour(generator, 0, 256))
    draw = ImageDraw.Draw(image)
    for _corner in range(int(generator.integers(3, 10))):
        corners = [tuple(point) for point in generator.integers(0, SIDE, (int(generator.integers(3, 7)), 2)).tolist()]
        draw.polygon(corners, fill=_colour(generator, 0, 256))
    return np.asarray(image)


def edges(source: Pixels, _: np.random.Generator) -> Pixels:
    """The picture's outlines only."""
    return np.asarray(Image.fromarray(source).convert("L").filter(ImageFilter.FIND_EDGES).convert("RGB"))


def mosaic(source: Pixels, generator: np.random.Generator) -> Pixels:
    """Large squares of one colour each."""
    side = int(generator.choice([4, 8]))
    return np.asarray(Image.fromarray(source).resize((side, side)).resize((SIDE, SIDE), Image.Resampling.NEAREST))


def burnt(source: Pixels, generator: np.random.Generator) -> Pixels:
    """Exposed so that little more than black and white is left."""
    return _bytes((source.astype(np.float64) - generator.uniform(60, 190)) * generator.uniform(5, 12) + 128)


def blend(source: Pixels, generator: np.random.Generator) -> Pixels:
    """The picture over itself, turned and mirrored."""
    return _bytes(0.5 * source + 0.5 * np.rot90(source, int(generator.integers(1, 4)))[:, ::-1])


def _bytes(values: NDArray[np.floating]) -> Pixels:
    made: Pixels = np.clip(values, 0, 255).astype(np.uint8)
    return made


def _colour(generator: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = generator.integers(low, high, 3).tolist()
    return red, green, blue


FAMILIES: dict[str, tuple[Family, ...]] = {
    "report": (noise, gradient, text, screenshot, heavy_blur, negative, channel_swap, tiling, jigsaw),
    "development": (grating, code, polygons, edges, mosaic, burnt, blend),
}
