"""How a hostile case and its benign twin are told apart: the code of the guard's refusal, and the guard's bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pu_engine.errors import EngineError
from pu_engine.guard import static_guard
from tests.hostile.oracle import guarded
from tests.hostile.seed_models import core, model

Edit = Callable[[Any], object]


def edited(edit: Edit) -> Any:
    """The plain core teacher, changed."""
    nodes, constants = core("x", "y")
    made = model(nodes, constants)
    edit(made)
    return made


def code_of(made: Any, blobs: Mapping[str, bytes] | None = None) -> str:
    """The code of the refusal, which is the same for the same bytes; empty where the model passes, and stays stable."""
    data = made if isinstance(made, bytes) else made.SerializeToString()
    first, second = _vetted(data, blobs), _vetted(data, blobs)
    assert first == second
    if isinstance(first, bytes):
        assert guarded(first) == first
        return ""
    code, message, remedy = first
    assert message
    assert remedy
    return code


def _vetted(data: bytes, blobs: Mapping[str, bytes] | None) -> bytes | tuple[str, str, str]:
    try:
        return static_guard.canonical_bytes(static_guard.vet(data, blobs))
    except EngineError as error:
        return error.code, error.message, error.remedy
