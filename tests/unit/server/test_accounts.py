"""Tokens: kept as digests, ended by time or by the operator, seen at once by a server that runs."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.accounts import Accounts


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "accounts.sqlite3"


@pytest.fixture
def store(database: Path) -> Iterator[Accounts]:
    opened = Accounts(database)
    yield opened
    opened.close()


def test_token_is_accepted_and_only_its_digest_is_kept(store: Accounts, database: Path) -> None:
    made, text = store.create("acme", ["submit", "read"], days=30, note="CI")
    found = store.authenticate(text)
    assert found == made
    assert (made.tenant, made.scopes, made.note) == ("acme", ("read", "submit"), "CI")
    assert made.expires - made.created == 30 * 86400
    assert made.sha256 == hashlib.sha256(text.encode()).digest()
    secret = text.split("_", 2)[2].encode()
    assert all(secret not in file.read_bytes() for file in database.parent.iterdir())


def test_every_other_text_is_nobody(store: Accounts) -> None:
    _, text = store.create("acme", ["read"], days=1)
    head, token_id, secret = text.split("_", 2)
    for wrong in ("", "pnt_", text + " ", text[:-1], f"{head}_{'0' * 16}_{secret}", f"{head}_{token_id}_{'A' * 43}"):
        assert store.authenticate(wrong) is None


def test_expired_token_is_nobody(store: Accounts, monkeypatch: pytest.MonkeyPatch) -> None:
    made, text = store.create("acme", ["read"], days=1)
    monkeypatch.setattr("server.accounts.time.time", lambda: made.expires - 1)
    assert store.authenticate(text) is not None
    monkeypatch.setattr("server.accounts.time.time", lambda: made.expires)
    assert store.authenticate(text) is None
    assert not store.live(made.id)


def test_what_another_process_changes_counts_with_the_next_question(store: Accounts, database: Path) -> None:
    operator = Accounts(database)
    made, text = operator.create("acme", ["read"], days=1)
    assert store.authenticate(text) is not None
    assert operator.revoke(made.id)
    assert store.authenticate(text) is None
    assert not store.live(made.id)
    operator.share_pool("web", "acme")
    assert store.shared_pools() == {"web": "acme"}
    assert operator.unshare_pool("web")
    assert store.shared_pools() == {}
    operator.close()


def test_revoking_twice_keeps_the_first_time_and_a_stranger_is_no_token(store: Accounts) -> None:
    made, _ = store.create("acme", ["read"], days=1)
    assert store.revoke(made.id)
    first = store.tokens()[made.id].revoked
    assert store.revoke(made.id)
    assert store.tokens()[made.id].revoked == first
    assert not store.revoke("0" * 16)
    assert not store.unshare_pool("web")


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (("Acme", ["read"], 1.0, ""), "Acme"),
        (("../acme", ["read"], 1.0, ""), "../acme"),
        (("", ["read"], 1.0, ""), "''"),
        (("acme", [], 1.0, ""), "none"),
        (("acme", ["root"], 1.0, ""), "root"),
        (("acme", ["read"], 0.0, ""), "got 0"),
        (("acme", ["read"], float("nan"), ""), "nan"),
        (("acme", ["read"], 1e9, ""), "3650"),
        (("acme", ["read"], 1.0, "a\nb"), "printable"),
    ],
)
def test_what_can_not_be_a_token_is_named(store: Accounts, made: tuple[str, list[str], float, str], named: str) -> None:
    tenant, scopes, days, note = made
    with pytest.raises(ValueError, match=re.escape(named)):
        store.create(tenant, scopes, days=days, note=note)
    assert store.tokens() == {}


def test_accounts_of_a_later_version_are_not_read(database: Path) -> None:
    Accounts(database).close()
    with sqlite3.connect(database) as later:
        later.execute("PRAGMA user_version=9")
    with pytest.raises(sqlite3.DatabaseError, match="schema 9"):
        Accounts(database)
