"""Who is admitted: one bearer token, with its tenant's certificate where clients show one, for methods with a scope."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from punnet.errors import PunnetError
from server.accounts import SCOPES, Accounts
from server.admission import Admission
from server.callers import Caller
from server.quotas import Quotas

LIST = "/punnet.v1.CompressionService/ListJobs"


@dataclass(frozen=True)
class Call:
    """What gRPC tells of a call before its request is read."""

    token: str = ""
    certificate: str = ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"x509_common_name": [self.certificate.encode()]} if self.certificate else {}

    def peer(self) -> str:
        return "ipv4:10.0.0.7:51234"


@pytest.fixture
def accounts(tmp_path: Path) -> Iterator[Accounts]:
    opened = Accounts(tmp_path / "accounts.sqlite3")
    yield opened
    opened.close()


def refusal(admission: Admission, method: str, call: Any) -> str:
    with pytest.raises(PunnetError) as refused:
        admission.admit(method, call)
    return refused.value.code


def test_caller_is_the_tokens_tenant(accounts: Accounts) -> None:
    made, text = accounts.create("acme", ["read"], days=1)
    admission = Admission(accounts, Quotas())
    call: Any = Call(text)
    assert admission.admit(LIST, call) == Caller(tenant="acme", token_id=made.id)
    assert refusal(admission, LIST, Call()) == "TOKEN_INVALID"


def test_method_that_says_nothing_of_its_scope_is_refused_to_every_token(accounts: Accounts) -> None:
    _, text = accounts.create("acme", SCOPES, days=1)
    admission = Admission(accounts, Quotas())
    for method in (
        "/punnet.v1.NewService/New",
        "/punnet.v1.CompressionService/compress",
        "/grpc.health.v1.Health/List",
    ):
        assert refusal(admission, method, Call(text)) == "SCOPE_MISSING"


def test_certificate_must_be_the_tenants_where_clients_show_one(accounts: Accounts) -> None:
    made, text = accounts.create("acme", ["read"], days=1)
    admission = Admission(accounts, Quotas(), certificates=True)
    own: Any = Call(text, "acme")
    assert admission.admit(LIST, own).token_id == made.id
    for name in ("", "globex", "acme2"):
        assert refusal(admission, LIST, Call(text, name)) == "TOKEN_INVALID"


def test_server_without_accounts_has_one_tenant_and_no_limits() -> None:
    admission = Admission(None, Quotas(calls_a_minute=1, open_calls=1))
    call: Any = Call()
    assert {admission.admit(LIST, call) for _ in range(5)} == {Caller(tenant="local")}


def test_open_calls_are_counted_until_they_end(accounts: Accounts) -> None:
    _, text = accounts.create("acme", ["read"], days=1)
    admission = Admission(accounts, Quotas(open_calls=2))
    call: Any = Call(text)
    callers = [admission.admit(LIST, call) for _ in range(2)]
    assert refusal(admission, LIST, call) == "QUOTA"
    admission.leave(callers[0])
    admission.admit(LIST, call)


def test_caller_whose_token_ended_meanwhile_may_not_go_on(accounts: Accounts) -> None:
    made, text = accounts.create("acme", ["read"], days=1)
    admission = Admission(accounts, Quotas())
    call: Any = Call(text)
    caller = admission.admit(LIST, call)
    admission.check(caller)
    accounts.revoke(made.id)
    with pytest.raises(PunnetError) as refused:
        admission.check(caller)
    assert refused.value.code == "TOKEN_INVALID"
