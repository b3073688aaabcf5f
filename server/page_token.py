"""Where the next page starts, opaque to the client."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

from server.request_check import violation


def to_token(*position: int | str) -> str:
    """A token for the position of the last row of a page."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def parse_token(token: str, kinds: tuple[type, ...]) -> Any:
    """The position; raises PunnetError REQUEST_INVALID for a token that is none of ours."""
    try:
        position = json.loads(base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True))
        fits = isinstance(position, list) and [type(value) for value in position] == list(kinds)
    except (ValueError, binascii.Error, RecursionError):
        fits = False
    if not fits or not all(_possible(value) for value in position):
        raise violation("page_token", "the next_page_token of the page before, or empty", token)
    return tuple(position)


def _possible(value: int | str) -> bool:
    """Whether the database takes it: whole numbers of 63 bits, text without halves of characters."""
    if isinstance(value, int):
        return 0 <= value < 2**62
    return not any("\ud800" <= character <= "\udfff" for character in value)
