"""Floors and caps of the balanced rule, from the names that a user gives them by."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.types import SelectionOptions

EVERY = "*"  # each class with labelled images that is not named
UNBOUNDED = 2**62

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassBounds:
    """Fewest and most picks of each class, [K]."""

    floors: Counts
    caps: Counts


def class_bounds(options: SelectionOptions, class_names: Sequence[str], labelled: NDArray[np.bool_]) -> ClassBounds:
    """The bounds of each class; a class that is not named has none.

    Args:
        class_names: of the teacher's outputs, K of them.
        labelled: outputs that have labelled images, [K].

    Raises:
        EngineError: REQUEST_INVALID for an unknown class, a floor above its cap, a floor of a class without labelled
            images, or bounds with another rule than `balanced`.
    """
    if (options.class_floors or options.class_caps) and options.rule != "balanced":
        raise _invalid(
            f"selection.rule is {options.rule!r}, but floors or caps are given",
            "Floors and caps are for the balanced rule.",
        )
    floors = _by_class("class_floors", options.class_floors, class_names, labelled, 0)
    caps = _by_class("class_caps", options.class_caps, class_names, labelled, UNBOUNDED)
    for index in np.flatnonzero((floors > caps) | ((floors > 0) & ~labelled)).tolist():
        name = class_names[index]
        if not labelled[index]:
            raise _invalid(f"selection.class_floors names {name!r}, which has no labelled image", "Leave it out.")
        raise _invalid(
            f"The floor of {name!r} is {floors[index]}, its cap {caps[index]}",
            "Give a floor that is not above the cap.",
        )
    return ClassBounds(floors=floors, caps=caps)


def check_room(bounds: ClassBounds, available: Counts, count: int) -> None:
    """Raises EngineError REQUEST_INVALID where the floors, as far as the pool fills them, exceed the picks."""
    least = int(np.minimum(bounds.floors, available).sum())
    if least > count:
        raise _invalid(
            f"The floors ask for {least} images, but {count} are to be picked",
            "Lower selection.class_floors, or raise selection.count.",
        )


def _by_class(
    field: str, stated: Mapping[str, int], names: Sequence[str], labelled: NDArray[np.bool_], default: int
) -> Counts:
    bound = np.where(labelled, stated.get(EVERY, default), default).astype(np.int64)
    places = {name: index for index, name in enumerate(names)}
    for name, value in stated.items():
        if value < 0:
            raise _invalid(f"selection.{field}[{name!r}] is {value}", "Give 0 or more images.")
        if name == EVERY:
            continue
        if name not in places:
            close = difflib.get_close_matches(name, names, n=3)
            hint = f"Did you mean {', '.join(close)}?" if close else f"The teacher's classes begin with {names[0]!r}."
            raise _invalid(f"selection.{field} names {name!r}, which is no class of the teacher", hint)
        bound[places[name]] = value
    return bound


def _invalid(message: str, remedy: str) -> EngineError:
    return EngineError("REQUEST_INVALID", f"{message}.", remedy)
