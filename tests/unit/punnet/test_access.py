"""Where credentials come from, and where a token is never sent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from punnet.access import Access, access, is_local
from punnet.errors import AccessDenied, InvalidRequest
from server.accounts import Accounts

TOKEN = "pnt_" + "0" * 16 + "_" + "A" * 43
OTHER = "pnt_" + "1" * 16 + "_" + "B" * 43


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOKEN", "TOKEN_FILE", "CA", "CERTIFICATE", "KEY"):
        monkeypatch.delenv(f"PUNNET_{name}", raising=False)


def test_nothing_stated_is_no_credentials() -> None:
    assert access() == Access()
    assert access().metadata == ()


def test_stated_token_comes_before_the_environments_and_that_before_a_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("PUNNET_TOKEN_FILE", str(tmp_path / "token"))
    assert access().token == TOKEN
    monkeypatch.setenv("PUNNET_TOKEN", OTHER)
    assert access().token == OTHER
    assert access(token_file=tmp_path / "token").token == TOKEN
    assert access(TOKEN).token == TOKEN
    assert access(TOKEN).metadata == (("authorization", f"Bearer {TOKEN}"),)


def test_tokens_that_the_server_makes_have_the_form_that_the_client_takes(tmp_path: Path) -> None:
    accounts = Accounts(tmp_path / "a.sqlite3")
    _, text = accounts.create("acme", ["read"], days=1)
    assert access(text).token == text
    accounts.close()


def test_text_that_is_no_token_is_refused_without_repeating_it() -> None:
    with pytest.raises(InvalidRequest) as refused:
        access("my-password")
    assert "my-password" not in str(refused.value)


def test_credentials_are_shown_without_the_token() -> None:
    assert "A" * 43 not in repr(Access(token=TOKEN))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as refused:
        access(token_file=tmp_path / "none")
    assert str(tmp_path / "none") in refused.value.message


def test_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        access(certificate=tmp_path / "c.pem")


@pytest.mark.parametrize("address", ["unix:/run/s", "127.0.0.1:1", "localhost:1", "[::1]:1", "127.9.9.9:1"])
def test_bytes_to_this_machine_stay_on_it(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize("address", ["10.0.0.1:1", "example.org:1", "[2001:db8::1]:1", "0.0.0.0:1", "host"])
def test_bytes_to_any_other_address_do_not(address: str) -> None:
    assert not is_local(address)


def test_token_never_crosses_a_network_without_tls() -> None:
    with pytest.raises(AccessDenied) as refused:
        Access(token=TOKEN).channel("example.org:443", ())
    assert refused.value.code == "TOKEN_IN_PLAINTEXT"
    assert TOKEN not in str(refused.value)

    async def opened() -> None:
        for allowed in (
            Access(token=TOKEN).channel("https://example.org:443", ()),
            Access().channel("example.org:1", ()),
        ):
            await allowed.close()

    asyncio.run(opened())
