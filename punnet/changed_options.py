"""`--set key=value`: keywords of `compress`, each read as its type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from punnet.errors import InvalidRequest
from punnet.options import CompressOptions

LOSS = "loss."  # before a part of the loss, whose value is its weight
# Of the request as a whole, not of how it compresses.
_NOT_SET = frozenset({"request_id", "validate_only"})
_SHORTER = {"max_minutes": "minutes"}  # the option's name on the command line -> the keyword
_READ = {
    "int": int,
    "float": float,
    "str": str,
    "bool": lambda text: _flag(text),  # noqa: PLW0108 - it is defined below
    "Path | str": str,
    "Sequence[str]": lambda text: text.split(","),
    "Sequence[float]": lambda text: [float(part) for part in text.split(",")],
    "Mapping[str, int]": lambda text: {k: int(n) for k, _, n in (part.rpartition("=") for part in text.split(","))},
}


def settable() -> dict[str, str]:
    """Keyword -> type, of all that `--set` takes."""
    types = {name: getattr(kind, "__forward_arg__", kind) for name, kind in CompressOptions.__annotations__.items()}
    return {name: str(kind) for name, kind in sorted(types.items()) if name not in _NOT_SET and kind in _READ}


def changed_options(changes: Sequence[str]) -> CompressOptions:
    """The keywords that `key=value` pairs state; the last one of a key counts.

    Raises:
        InvalidRequest: REQUEST_INVALID for what is no pair, an unknown key, or a value of another type.
    """
    kinds = settable()
    found: dict[str, Any] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        name = name.strip().replace("-", "_")
        name = _SHORTER.get(name, name)
        if equals and name.startswith(LOSS):
            found.setdefault("loss", {})[name.removeprefix(LOSS)] = _read(float, "float", text, change)
            continue
        if not equals or name not in kinds:
            what = f"--set {change}: {name!r} is no option" if equals else f"--set {change} is no key=value"
            raise _invalid(f"{what}.", f"Take one of {', '.join(kinds)}, or loss.PART.", change)
        found[name] = _read(_READ[kinds[name]], kinds[name], text, change)
    return cast(CompressOptions, found)


def _read(kind: Any, shown: str, text: str, change: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise _invalid(f"--set {change}: {text!r} is no {shown}.", f"Give a {shown}.", change) from None


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _invalid(message: str, remedy: str, change: str) -> InvalidRequest:
    return InvalidRequest(message, code="REQUEST_INVALID", remedy=remedy, details={"option": change})
