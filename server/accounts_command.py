"""Accounts of a data folder: `python -I -m server.accounts_command token|pool ... --data DIR`.

It works on the data folder, whether its server runs or not; a running one heeds each change with its next call. Only
who may write to the folder can use it. Exit status 2: what was asked for can't be done, and standard error says why.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.accounts import SCOPES, TENANT, Accounts, Token
from server.folders import DataFolder

EXIT_REFUSED = 2
DEFAULT_SCOPES = ("read", "submit")
DEFAULT_DAYS = 90


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    os.umask(0o077)
    options = parser().parse_args(arguments)
    data = DataFolder(options.data.resolve())
    try:
        data.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        accounts = Accounts(data.accounts)
        try:
            document, text = options.run(accounts, data, options)
        finally:
            accounts.close()
    except (ValueError, OSError, sqlite3.Error) as error:
        print(f"punnet {options.group} {options.verb}: {error}", file=sys.stderr)
        return EXIT_REFUSED
    print(json.dumps(document, indent=2) if options.json else text)
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    root = argparse.ArgumentParser(prog="punnet", description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data", type=Path, required=True, help="the server's data folder")
    shared.add_argument("--json", action="store_true", help="print one JSON document")
    groups = root.add_subparsers(dest="group", required=True)
    token = groups.add_parser("token", help="who may use the server").add_subparsers(dest="verb", required=True)
    create = token.add_parser("create", parents=[shared], help="make a token and print it, once")
    create.add_argument("--tenant", required=True, help="whose jobs, files and pools it reaches")
    create.add_argument("--scope", action="append", choices=SCOPES, help="may be repeated [read and submit]")
    create.add_argument("--days", type=float, default=DEFAULT_DAYS, help=f"until it expires [{DEFAULT_DAYS}]")
    create.add_argument("--note", default="", help="for you: who has it")
    create.set_defaults(run=_create)
    token.add_parser("list", parents=[shared], help="every token, without its secret").set_defaults(run=_list)
    revoke = token.add_parser("revoke", parents=[shared], help="end a token at once")
    revoke.add_argument("id", help="as `punnet token list` shows it")
    revoke.set_defaults(run=_revoke)
    pool = groups.add_parser("pool", help="pools for all tenants").add_subparsers(dest="verb", required=True)
    share = pool.add_parser("share", parents=[shared], help="let every tenant use a tenant's pool")
    share.add_argument("name")
    share.add_argument("--tenant", required=True, help="whose pool it is")
    share.set_defaults(run=_share)
    unshare = pool.add_parser("unshare", parents=[shared], help="end that; jobs that use it go on")
    unshare.add_argument("name")
    unshare.set_defaults(run=_unshare)
    return root


def _create(accounts: Accounts, data: DataFolder, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    scopes = options.scope or DEFAULT_SCOPES
    token, text = accounts.create(options.tenant, scopes, days=options.days, note=options.note)
    return {**_document(token), "token": text}, text


def _list(accounts: Accounts, data: DataFolder, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    documents = [_document(token) for token in accounts.tokens().values()]
    columns = ("id", "tenant", "scopes", "state", "expires", "note")
    rows = [columns, *(tuple(str(_cell(document[name])) for name in columns) for document in documents)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return {"tokens": documents}, "\n".join(lines)


def _revoke(accounts: Accounts, data: DataFolder, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if not accounts.revoke(options.id):
        raise ValueError(f"there is no token {options.id!r}; `punnet token list` shows those that there are")
    return {"id": options.id, "state": "revoked"}, f"{options.id} is revoked."


def _share(accounts: Accounts, data: DataFolder, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if not _has_pool(data, options.tenant, options.name):
        raise ValueError(f"tenant {options.tenant!r} has no pool {options.name!r} in {data.root}")
    accounts.share_pool(options.name, options.tenant)
    return {"name": options.name, "tenant": options.tenant}, f"Every tenant may use {options.name}."


def _unshare(accounts: Accounts, data: DataFolder, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if not accounts.unshare_pool(options.name):
        raise ValueError(f"no pool {options.name!r} is shared")
    return {"name": options.name}, f"{options.name} is its tenant's alone again."


def _has_pool(data: DataFolder, tenant: str, name: str) -> bool:
    if not TENANT.fullmatch(tenant) or not data.database.exists():
        return False
    database = sqlite3.connect(f"file:{data.database}?mode=ro", uri=True)
    try:
        row = database.execute("SELECT 1 FROM pool WHERE tenant=? AND name=? AND ready=1", (tenant, name)).fetchone()
    finally:
        database.close()
    return row is not None


def _document(token: Token) -> dict[str, Any]:
    state = "revoked" if token.revoked is not None else "live" if token.live(time.time()) else "expired"
    return {
        "id": token.id,
        "tenant": token.tenant,
        "scopes": list(token.scopes),
        "state": state,
        "created": _time(token.created),
        "expires": _time(token.expires),
        "note": token.note,
    }


def _cell(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ",".join(value)


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


if __name__ == "__main__":
    sys.exit(main())
