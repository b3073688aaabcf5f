"""Frozen dataclasses to JSON values and back, strictly."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")
# Metadata of a field whose value differs from run to run: a timing, or what follows from one.
MEASURED: Mapping[str, bool] = {"measured": True}


def to_json(value: Any, *, measured: bool = True) -> Any:
    """JSON form of a dataclass, tuple, mapping or scalar; without `measured`, only what a repeated run gives again."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = [f for f in dataclasses.fields(value) if measured or not f.metadata.get("measured")]
        return {f.name: to_json(getattr(value, f.name), measured=measured) for f in kept}
    if isinstance(value, Mapping):
        return {str(k): to_json(v, measured=measured) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v, measured=measured) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"no JSON form for {type(value).__name__}")


def from_json(kind: type[T], data: Any) -> T:
    """A value of `kind` from its JSON form.

    Raises:
        ValueError: an unknown or missing key, or a value of another type; the message names it.
    """
    return typing.cast(T, _read(kind, data, kind.__name__))


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Union or isinstance(kind, types.UnionType):
        (inner,) = [a for a in arguments if a is not type(None)]
        return None if data is None else _read(inner, data, where)
    if origin is tuple:
        rows = _expect(list, data, where)
        return tuple(_read(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(rows))
    if origin is Mapping or origin is dict:
        return {k: _read(arguments[1], v, f"{where}.{k}") for k, v in _expect(dict, data, where).items()}
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    return _expect(kind, data, where)


def _expect(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        raise ValueError(f"{where}: expected {kind.__name__}, got {type(data).__name__}")
    return data


def _read_dataclass(kind: Any, data: Any, where: str) -> Any:
    _expect(dict, data, where)
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ValueError(f"{where}: unknown keys {unknown}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _read(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where}: missing key {name!r}")
    return kind(**values)
