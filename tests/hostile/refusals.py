"""How a hostile case and its benign twin are told apart: the code of the guard's refusal, and the guard's bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from pu_engine import guard
from pu_engine.errors import EngineError
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
    try:
        canonical = guard.canonical_bytes(guard.vet(data, blobs))
    except EngineError as error:
        with pytest.raises(EngineError) as again:
            guard.vet(data, blobs)
        assert (again.value.code, again.value.message) == (error.code, error.message)
        assert error.message
        assert error.remedy
        return error.code
    assert guarded(canonical) == canonical
    return ""
