"""Decoding, the resize kernel and the matched view."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pu_engine.errors import EngineError
from pu_engine.imaging import images

ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    """[12, 20, 3] with a different colour in every corner."""
    y, x = np.mgrid[0:12, 0:20]
    return np.stack([x * 12, y * 20, (x + y) * 7], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_png_decodes_to_its_exact_pixels(picture: NDArray[np.uint8]) -> None:
    decoded = images.decode(encoded(Image.fromarray(picture), "PNG"), 3)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, picture)


def test_jpeg_decodes_as_pillow_does(picture: NDArray[np.uint8]) -> None:
    data = encoded(Image.fromarray(picture), "JPEG", quality=90)
    difference = images.decode(data, 3).astype(int) - np.asarray(Image.open(io.BytesIO(data))).astype(int)
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_one_channel_is_the_luma(picture: NDArray[np.uint8], kind: str) -> None:
    decoded = images.decode(encoded(Image.fromarray(picture), kind), 1)
    luma = picture @ [0.299, 0.587, 0.114]
    assert decoded.shape == (12, 20, 1)
    assert np.abs(decoded[..., 0] - luma).mean() < 6


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_gray_file_gives_three_equal_channels(picture: NDArray[np.uint8], kind: str) -> None:
    decoded = images.decode(encoded(Image.fromarray(picture).convert("L"), kind), 3)
    assert decoded.shape == (12, 20, 3)
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


def test_cmyk_jpeg_comes_out_as_rgb(picture: NDArray[np.uint8]) -> None:
    data = encoded(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(images.decode(data, 3).astype(int) - picture).mean() < 6


def test_sixteen_bit_png_keeps_the_upper_byte() -> None:
    deep = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
    decoded = images.decode(encoded(Image.fromarray(deep), "PNG"), 1)
    np.testing.assert_array_equal(decoded[..., 0], deep >> 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1"])
def test_other_png_modes_decode(picture: NDArray[np.uint8], mode: str) -> None:
    options = {"transparency": b"\x00\x80"} if mode == "P" else {}
    assert images.decode(encoded(Image.fromarray(picture).convert(mode), "PNG", **options), 3).shape == (12, 20, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(picture: NDArray[np.uint8], kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {} if kind == "PNG" else {"quality": 100, "subsampling": 0}
    data = encoded(Image.fromarray(picture), kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    decoded = images.decode(data, 3)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("exif", [b"Exif\0\0II*\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0nonsense" * 3])
def test_nonsense_exif_means_upright(picture: NDArray[np.uint8], exif: bytes) -> None:
    data = simplejpeg.encode_jpeg(picture)
    length = (len(exif) + 2).to_bytes(2, "big")
    assert images.decode(data[:2] + b"\xff\xe1" + length + exif + data[2:], 3).shape == picture.shape


def test_channels_other_than_one_or_three_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="1 or 3"):
        images.decode(b"", 4)


def test_resize_to_the_same_size_is_the_identity(picture: NDArray[np.uint8]) -> None:
    assert images.resize(picture, 12, 20) is picture


def test_resize_is_the_antialiased_triangle() -> None:
    """By hand: output 0 lies at 1.0, weights 0.75, 0.75, 0.25 of 1.75, so 255 * 0.25 / 1.75 = 36.43."""
    row = np.array([0, 0, 255, 255], np.uint8).reshape(1, 4, 1)
    np.testing.assert_array_equal(images.resize(row, 1, 2)[0, :, 0], [36, 219])


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_keeps_the_channels(picture: NDArray[np.uint8], channels: int) -> None:
    resized = images.resize(picture[..., :channels], 7, 5)
    expected = Image.fromarray(picture[..., 0]).resize((5, 7), Image.Resampling.BILINEAR)
    assert resized.shape == (7, 5, channels)
    np.testing.assert_array_equal(resized[..., 0], np.asarray(expected))


def test_decode_resized_is_decode_then_resize(picture: NDArray[np.uint8]) -> None:
    data = encoded(Image.fromarray(picture), "JPEG")
    np.testing.assert_array_equal(images.decode_resized(data, 6, 9, 3), images.resize(images.decode(data, 3), 6, 9))


def test_every_quality_is_recovered(picture: NDArray[np.uint8]) -> None:
    found = [images.jpeg_quality(simplejpeg.encode_jpeg(picture, quality=q)) for q in range(1, 101)]
    assert found == [(q, "4:4:4") for q in range(1, 101)]


@pytest.mark.parametrize(("subsampling", "chroma"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_chroma_has_its_usual_name(picture: NDArray[np.uint8], subsampling: int, chroma: str) -> None:
    data = encoded(Image.fromarray(picture), "JPEG", quality=60, subsampling=subsampling)
    assert images.jpeg_quality(data) == (60, chroma)


def test_gray_jpeg_has_no_chroma_and_png_no_quality(picture: NDArray[np.uint8]) -> None:
    gray = Image.fromarray(picture).convert("L")
    assert images.jpeg_quality(encoded(gray, "JPEG", quality=80)) == (80, "gray")
    assert images.jpeg_quality(encoded(gray, "PNG")) is None


def test_quality_of_foreign_tables_is_the_nearest(picture: NDArray[np.uint8]) -> None:
    data = encoded(Image.fromarray(picture), "JPEG", qtables="web_low")
    found = images.jpeg_quality(data)
    assert found is not None
    assert 1 <= found[0] <= 100


@pytest.mark.parametrize("chroma", ["4:4:4", "4:2:0", "gray", "other"])
def test_reencode_shows_what_the_jpeg_shows(picture: NDArray[np.uint8], chroma: str) -> None:
    sub = {"4:4:4": "444", "4:2:0": "420", "gray": "Gray", "other": "420"}[chroma]
    expected = images.decode(simplejpeg.encode_jpeg(picture, quality=40, colorsubsampling=sub, fastdct=False), 3)
    np.testing.assert_array_equal(images.reencode(picture, 40, chroma), expected)


def test_reencode_of_gray_stays_gray(picture: NDArray[np.uint8]) -> None:
    view = images.reencode(picture[..., :1], 50, "4:2:0")
    assert view.shape == (12, 20, 1)
    assert (view != picture[..., :1]).any()


def test_dimensions_read_the_header_only(picture: NDArray[np.uint8]) -> None:
    assert images.dimensions(encoded(Image.fromarray(picture), "PNG")[:40]) == (12, 20)
    assert images.dimensions(simplejpeg.encode_jpeg(picture)) == (12, 20)


def test_other_formats_are_named() -> None:
    with pytest.raises(EngineError, match="neither JPEG nor PNG") as caught:
        images.decode(b"GIF89a", 3)
    assert caught.value.code == "IMAGE_REJECTED"


def test_crop_keeps_the_aspect_ratio_and_the_middle() -> None:
    image = np.zeros((80, 160, 3), np.uint8)
    image[5:75, 45:115] = 255
    np.testing.assert_array_equal(images.crop_centre(image, 32, 32), np.full((70, 70, 3), 255, np.uint8))
    assert images.crop_centre(image, 16, 64).shape == (35, 140, 3)
    assert images.crop_centre(np.zeros((3, 1, 1), np.uint8), 8, 8).shape == (1, 1, 1)


def test_fit_decides_what_is_seen_of_an_image_of_another_shape() -> None:
    image = np.zeros((64, 128, 3), np.uint8)
    image[:, 64:] = 255
    data = encoded(Image.fromarray(image), "PNG")
    stretched = images.decode_resized(data, 16, 16, 1)
    assert (stretched[:, :7].max(), stretched[:, 9:].min()) == (0, 255)
    cropped = images.decode_resized(data, 16, 16, 1, "crop")
    assert (cropped[:, :7].max(), cropped[:, 9:].min()) == (0, 255)
    narrow = images.decode_resized(encoded(Image.fromarray(image[:, 32:]), "PNG"), 16, 16, 1, "crop")
    assert narrow[:, 5:].min() == 255


def photograph(side: int = 256) -> NDArray[np.uint8]:
    """Large shapes, edges and fine noise, so that every frequency of a block is there."""
    generator = np.random.default_rng(3)
    layers = [images.resize(generator.integers(0, 256, (n, n, 3), np.uint8), side, side) / n for n in (4, 16, 64)]
    smooth = np.sum(layers, axis=0)
    scaled: NDArray[np.uint8] = (255 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)
    scaled[side // 4 : side // 2, side // 4 :] //= 2
    return scaled


@pytest.mark.parametrize("target", [(16, 16), (42, 42), (10, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_scaled_decoding_stays_near_to_full_decoding(target: tuple[int, int], channels: int) -> None:
    data = simplejpeg.encode_jpeg(photograph(), quality=90)
    full = images.resize(images.decode(data, channels), *target).astype(int)
    difference = np.abs(full - images.decode_resized(data, *target, channels))
    assert difference.any(), "it was not decoded at a fraction of its size"
    assert difference.mean() < 2
    assert difference.max() <= 24


@pytest.mark.parametrize("target", [(16, 16), (12, 36)])
def test_scaled_decoding_of_a_cropped_view_stays_near(target: tuple[int, int]) -> None:
    data = simplejpeg.encode_jpeg(photograph(), quality=90)
    full = images.resize(images.crop_centre(images.decode(data, 3), *target), *target).astype(int)
    difference = np.abs(full - images.decode_resized(data, *target, 3, "crop"))
    assert difference.mean() < 3
    assert difference.max() <= 40


@pytest.mark.parametrize("target", [(43, 43), (64, 64), (255, 10), (300, 300)])
def test_jpeg_that_is_not_much_larger_is_decoded_in_full(target: tuple[int, int]) -> None:
    data = simplejpeg.encode_jpeg(photograph(), quality=90)
    full = images.resize(images.decode(data, 3), *target)
    np.testing.assert_array_equal(images.decode_resized(data, *target, 3), full)


def test_scaled_decoding_of_a_rotated_image_swaps_the_sides() -> None:
    picture = photograph()[:, :128]
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, exif=exif)
    shown = images.decode_resized(buffer.getvalue(), 20, 40, 3)
    expected = images.resize(np.ascontiguousarray(np.rot90(picture, -1)), 20, 40).astype(int)
    assert shown.shape == (20, 40, 3)
    assert np.abs(shown - expected).mean() < 3
