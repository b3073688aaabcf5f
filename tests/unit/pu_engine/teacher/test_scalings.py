"""The published scalings, by name."""

from __future__ import annotations

from itertools import chain

import pytest

from pu_engine.teacher import scalings


@pytest.mark.parametrize("families", [scalings.COLOUR_FAMILIES, scalings.GRAY_FAMILIES])
def test_every_scaling_has_its_own_name_and_figures(families: tuple[tuple[scalings.Scaling, ...], ...]) -> None:
    found = list(chain.from_iterable(families))
    assert len({s.name for s in found}) == len({(s.scale, s.mean, s.std) for s in found}) == len(found)


def test_scaling_is_found_by_its_figures_in_either_order() -> None:
    imagenet = scalings.COLOUR_FAMILIES[3][0]
    turned = imagenet.in_order("BGR")
    assert turned.mean == (0.406, 0.456, 0.485)
    assert scalings.find(turned.scale, turned.mean, turned.std, "BGR") == imagenet
    assert scalings.find(turned.scale, turned.mean, turned.std, "RGB") is None


def test_common_scalings_are_those_of_tutorials_and_bgr_is_at_home_with_caffe() -> None:
    by_name = {s.name: s for s in chain.from_iterable(scalings.COLOUR_FAMILIES)}
    assert set(scalings.COMMON) <= by_name.keys() | {s.name for s in chain.from_iterable(scalings.GRAY_FAMILIES)}
    caffe, unit, clip = (by_name[n] for n in ("0..255 less Caffe mean", "0..1", "CLIP mean and std"))
    assert [scalings.rarity(s, "RGB") for s in (caffe, unit, clip)] == [1.0, 0.0, 1.0]
    assert [scalings.rarity(s, "BGR") for s in (caffe, unit, clip)] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(("dtype", "mean"), [("uint8", 0.0), ("int8", 128.0)])
def test_integer_inputs_hold_pixels(dtype: str, mean: float) -> None:
    ((only,),) = scalings.families(dtype, 3)
    assert (only.scale, only.mean, only.std) == (1.0, (mean,) * 3, (1.0,) * 3)
