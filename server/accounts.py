"""Tokens of tenants and shared pools, in a database of their own: `accounts.sqlite3` in the data folder.

A token is `pnt_<id>_<secret>`. Only its sha256 is kept: a secret of 32 random bytes can't be guessed, so a slow hash
would add nothing. Another process (`punnet token`) writes while the server runs; the server sees it with its next call.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

SCHEMA_VERSION = 1
BUSY_MILLISECONDS = 5000
TOKEN_ID_BYTES = 8
SECRET_BYTES = 32
TOKEN = re.compile(rf"pnt_([0-9a-f]{{{2 * TOKEN_ID_BYTES}}})_[A-Za-z0-9_-]{{43}}")
TENANT = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SCOPES = ("read", "submit", "admin", "build")
SECONDS_A_DAY = 24 * 60 * 60
NOTE_CHARACTERS = 200

SCHEMA = """
CREATE TABLE token (
    id TEXT PRIMARY KEY,
    sha256 BLOB NOT NULL,
    tenant TEXT NOT NULL,
    scopes TEXT NOT NULL,
    note TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    revoked INTEGER
) STRICT;
CREATE TABLE shared_pool (
    name TEXT PRIMARY KEY,
    tenant TEXT NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is kept of a token. Times are seconds since 1970."""

    id: str
    sha256: bytes
    tenant: str
    scopes: tuple[str, ...]
    note: str
    created: int
    expires: int
    revoked: int | None

    def live(self, now: float) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked is None and now < self.expires


class Accounts:
    """The accounts of one data folder. Used from one thread."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.row_factory = sqlite3.Row
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_MILLISECONDS}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._create()
        self._seen = -1
        self._tokens: Mapping[str, Token] = {}
        self._shared: Mapping[str, str] = {}

    def authenticate(self, text: str) -> Token | None:
        """The live token that this text is; None for any other text."""
        match = TOKEN.fullmatch(text)
        token = self.tokens().get(match[1]) if match else None
        if token is None or not hmac.compare_digest(token.sha256, hashlib.sha256(text.encode()).digest()):
            return None
        return token if token.live(time.time()) else None

    def live(self, token_id: str) -> bool:
        """Whether a token that was accepted before would be accepted again."""
        token = self.tokens().get(token_id)
        return token is not None and token.live(time.time())

    def tokens(self) -> Mapping[str, Token]:
        """Every token ever made, by id, as it is now."""
        self._refresh()
        return self._tokens

    def shared_pools(self) -> Mapping[str, str]:
        """Name of each pool that every tenant may use -> the tenant whose pool it is."""
        self._refresh()
        return self._shared

    def create(self, tenant: str, scopes: Collection[str], *, days: float, note: str = "") -> tuple[Token, str]:
        """Make a token; the text is nowhere but in the answer.

        Raises:
            ValueError: with what is wrong, for the operator.
        """
        if not TENANT.fullmatch(tenant):
            raise ValueError(f'a tenant has 1 to 63 characters of [a-z0-9-], none a "-" at an end; got {tenant!r}')
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise ValueError(f"scopes are some of {', '.join(SCOPES)}; got {', '.join(unknown) or 'none'}")
        if not 0 < days <= 3650:
            raise ValueError(f"a token lives for more than 0 and at most 3650 days; got {days:g}")
        if len(note) > NOTE_CHARACTERS or not note.isprintable():
            raise ValueError(f"a note has at most {NOTE_CHARACTERS} printable characters; got {len(note)}")
        token_id = secrets.token_hex(TOKEN_ID_BYTES)
        text = f"pnt_{token_id}_{secrets.token_urlsafe(SECRET_BYTES)}"
        now = int(time.time())
        token = Token(
            id=token_id,
            sha256=hashlib.sha256(text.encode()).digest(),
            tenant=tenant,
            scopes=tuple(scope for scope in SCOPES if scope in scopes),
            note=note,
            created=now,
            expires=now + max(1, round(days * SECONDS_A_DAY)),
            revoked=None,
        )
        self._database.execute(
            "INSERT INTO token (id, sha256, tenant, scopes, note, created, expires) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (token.id, token.sha256, tenant, " ".join(token.scopes), note, token.created, token.expires),
        )
        self._seen = -1
        return token, text

    def revoke(self, token_id: str) -> bool:
        """Take a token's rights; False where there is no such token. A running server heeds it at once."""
        found = self._database.execute(
            "UPDATE token SET revoked=coalesce(revoked, ?) WHERE id=?", (int(time.time()), token_id)
        )
        self._seen = -1
        return found.rowcount > 0

    def share_pool(self, name: str, tenant: str) -> None:
        """Let every tenant use a pool of this tenant, in place of one of that name that was shared before."""
        self._database.execute("INSERT OR REPLACE INTO shared_pool (name, tenant) VALUES (?, ?)", (name, tenant))
        self._seen = -1

    def unshare_pool(self, name: str) -> bool:
        """End a pool's sharing; False where none of this name is shared. Jobs that use it go on."""
        found = self._database.execute("DELETE FROM shared_pool WHERE name=?", (name,))
        self._seen = -1
        return found.rowcount > 0

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _create(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in filter(str.strip, SCHEMA.split(";")):
                self._database.execute(statement)
            self._database.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        self._database.execute("COMMIT")
        if version not in (0, SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"accounts.sqlite3 has schema {version}, this server reads {SCHEMA_VERSION}")

    def _refresh(self) -> None:
        """Read again what another connection has changed; asking whether it has takes microseconds."""
        (seen,) = self._database.execute("PRAGMA data_version").fetchone()
        if seen == self._seen:
            return
        rows = self._database.execute("SELECT * FROM token ORDER BY created, id").fetchall()
        self._tokens = {row["id"]: Token(**dict(row) | {"scopes": tuple(row["scopes"].split())}) for row in rows}
        shared = self._database.execute("SELECT name, tenant FROM shared_pool ORDER BY name").fetchall()
        self._shared = {row["name"]: row["tenant"] for row in shared}
        self._seen = seen
