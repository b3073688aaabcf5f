"""Models of a kilobyte that ask for more memory than a stranger's model gets; each with a twin that asks for little."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.hostile.confined_intake import take_in
from tests.hostile.seed_models import core, model

node = helper.make_node


def integers(*values: int) -> Any:
    return np.array(values, np.int64)


def scaled(*values: float) -> Any:
    return np.array(values, np.float32)


def with_bomb(nodes: list[Any], constants: dict[str, Any], opset: int = 17) -> bytes:
    """A teacher whose scores get the largest value of the tensor v added, which is that of the image or 0."""
    around, weights = core("x", "scores")
    peak = [node("ReduceMax", ["v"], ["peak"], keepdims=0), node("Mul", ["peak", "nothing"], ["none"])]
    end = [node("Add", ["scores", "none"], ["y"])]
    made = model([*around, *nodes, *peak, *end], weights | constants | {"nothing": np.float32(0)}, opset=opset)
    data: bytes = made.SerializeToString()
    return data


def zeros(side: int) -> bytes:
    return with_bomb([node("ConstantOfShape", ["s"], ["v"])], {"s": integers(side, side)})


def expanded(side: int) -> bytes:
    return with_bomb([node("Expand", ["nothing", "s"], ["v"])], {"s": integers(side, side)})


def counted(side: int) -> bytes:
    nodes = [node("Range", ["first", "last", "step"], ["numbers"]), node("Cast", ["numbers"], ["v"], to=1)]
    return with_bomb(nodes, {"first": np.int64(0), "last": np.int64(side**2 // 2), "step": np.int64(1)})


def one_hot(side: int) -> bytes:
    nodes = [node("OneHot", ["i", "depth", "values"], ["v"])]
    return with_bomb(nodes, {"i": np.zeros(side, np.int64), "depth": np.int64(side), "values": scaled(0, 1)})


def padded(side: int) -> bytes:
    return with_bomb([node("Pad", ["x", "p"], ["v"])], {"p": integers(0, 0, 0, 0, 0, 0, side, side)})


def resized(side: int) -> bytes:
    return with_bomb([node("Resize", ["x", "", "s"], ["v"])], {"s": scaled(1, 1, side, side)})


def tiled(side: int) -> bytes:
    return with_bomb([node("Tile", ["x", "s"], ["v"])], {"s": integers(1, 1, side, side)})


def convolved(side: int) -> bytes:
    """Pads are bounded by the guard; many output channels over them are not."""
    pad = min(side, 1024)
    weights = np.zeros((max(1, side // 64), 3, 1, 1), np.float32)
    return with_bomb([node("Conv", ["x", "kernel"], ["v"], pads=[pad] * 4)], {"kernel": weights})


def doubled(side: int) -> bytes:
    names = ["nothing_1", *(f"d{level}" for level in range(side.bit_length() * 2)), "v"]
    pairs = itertools.pairwise(names)
    return with_bomb([node("Concat", [a, a], [b], axis=0) for a, b in pairs], {"nothing_1": scaled(*[0] * 16)})


BOMBS = {build.__name__: build for build in (zeros, expanded, counted, one_hot, padded, resized, tiled, convolved)}


@pytest.mark.parametrize("name", [*BOMBS, "doubled"])
def test_memory_bomb_fails_its_own_job_and_its_twin_runs(name: str, tmp_path: Path) -> None:
    build = BOMBS.get(name, doubled)
    assert take_in(tmp_path, build(2**16)).code == "MODEL_MEMORY"
    benign = take_in(tmp_path, build(4))
    assert (benign.code, benign.message) == ("", "")
