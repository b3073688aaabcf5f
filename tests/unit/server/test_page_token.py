from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punnet.errors import PunnetError
from server.page_token import parse_token, to_token


@given(number=st.integers(0, 2**62 - 1), text=st.text(max_size=80))
def test_token_gives_its_position_back(number: int, text: str) -> None:
    assert parse_token(to_token(number, text), (int, str)) == (number, text)


@pytest.mark.parametrize(
    "token",
    [
        "%",
        "ä",
        base64.urlsafe_b64encode(b"{").decode(),
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        to_token(1),
        to_token("1", "b"),
        to_token(-1, "b"),
        to_token(2**62, "b"),
        to_token(1, "b", 2),
        to_token(1, "\ud800"),  # half of a character: the database takes no such text
    ],
    ids=len,
)
def test_token_that_no_page_gave_is_refused_with_field_limit_and_value(token: str) -> None:
    with pytest.raises(PunnetError) as refused:
        parse_token(token, (int, str))
    assert refused.value.code == "REQUEST_INVALID"
    assert refused.value.details["field"] == "page_token"
    assert "next_page_token" in refused.value.details["limit"]
    assert refused.value.details["value"] == repr(token)[:80]
