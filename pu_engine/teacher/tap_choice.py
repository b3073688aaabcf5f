"""Which tensors become taps: those that the user names, else those that the graph suggests."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.teacher import taps
from pu_engine.teacher.fact_types import TapCandidate
from pu_engine.teacher.graph_surgery import INPUT, LOGITS, data_tensors
from pu_engine.types import Tap

SHOWN_CANDIDATES, DETAILED_CANDIDATES, CLOSE_NAMES = 12, 50, 3


def observable(model: Any, names: Sequence[str]) -> list[str]:
    """Those of the named tensors that the canonical model computes from the image."""
    data = data_tensors(model) - {item.name for item in model.graph.input}
    return [name for name in names if name in data]


def candidates(model: Any, values: Mapping[str, NDArray[Any]], image_layout: str) -> tuple[TapCandidate, ...]:
    """Cuts of the graph that can be taps, shallow to deep.

    Args:
        values: what each of `taps.candidates(model)`, and the logits, held in a run.
        image_layout: the teacher's, for tensors that no operator gives a meaning.
    """
    batch = len(values[LOGITS])
    kinds = {name: taps.kind_of(model, name, values[name], image_layout, batch) for name in taps.candidates(model)}
    return tuple(
        TapCandidate(name=name, kind=kind, shape=tuple(int(d) for d in values[name].shape[1:]))
        for name, kind in kinds.items()
        if kind is not None
    )


def choose(
    model: Any,
    stated: Sequence[str],
    found: Sequence[TapCandidate],
    values: Mapping[str, NDArray[Any]],
    image_layout: str,
) -> list[Tap]:
    """The taps, shallow to deep.

    Args:
        stated: names by the user; none: `taps.choose` among the candidates.
        values: of the candidates, of those stated names that are `observable`, and of the logits.

    Raises:
        EngineError: TAP_INVALID for a name that can't be a tap.
    """
    if not stated:
        return taps.choose(model, [row.name for row in found], values, image_layout)
    scores, batch = taps.score_names(model), len(values[LOGITS])
    usable = set(observable(model, stated)) - scores
    kinds = {}
    for name in stated:
        kind = taps.kind_of(model, name, values[name], image_layout, batch) if name in usable else None
        if kind is None:
            raise _invalid(name, _why(model, name, values, scores), found)
        kinds[name] = kind
    order = {name: index for index, node in enumerate(model.graph.node) for name in node.output}
    return taps.numbered(sorted(kinds.items(), key=lambda item: order[item[0]]), values)


def _why(model: Any, name: str, values: Mapping[str, NDArray[Any]], scores: set[str]) -> str:
    """What keeps a tensor from being a tap."""
    if name == INPUT:
        return "it is the image itself"
    if name in scores:
        return "it holds the scores"
    if name not in data_tensors(model):
        known = {n for node in model.graph.node for n in (*node.input, *node.output)}
        return "it does not depend on the image" if name in known else "no such tensor leads to the scores"
    value = values[name]
    if value.dtype not in (np.float32, np.float16):
        return f"it holds {value.dtype}; float32 or float16 is needed"
    return f"its shape is {list(value.shape)}; [N, ...] with 2 to 4 dimensions is needed"


def _invalid(name: str, why: str, found: Sequence[TapCandidate]) -> EngineError:
    names = [row.name for row in found]
    near = difflib.get_close_matches(name, names, CLOSE_NAMES)
    shown = list(dict.fromkeys([*near, *names]))[:SHOWN_CANDIDATES]
    more = f" and {len(names) - len(shown)} more, which `punnet inspect` lists" if len(names) > len(shown) else ""
    remedy = f"Name one of {', '.join(shown)}{more}; or leave the taps out." if names else "Leave the taps out."
    detailed = ", ".join(names[:DETAILED_CANDIDATES])
    return EngineError(
        "TAP_INVALID", f"Tensor {name!r} can't be a tap: {why}.", remedy, tensor=name, candidates=detailed
    )
