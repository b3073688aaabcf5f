"""A port that other machines reach needs TLS and a token; nothing talks the server out of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.accounts import Accounts
from tests.service.accounts import AccountsServer, make_certificates

EVERYWHERE = ("--listen", "0.0.0.0:0", "--allow-weak-sandbox")


def start_refused(*arguments: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "server", *map(str, arguments)], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    return done.stderr.decode()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.168.1.5:9000", "[::]:0", "[2001:db8::1]:443"])
def test_port_that_others_reach_needs_tls(folder: Path, address: str) -> None:
    said = start_refused("--data", folder / "data", "--listen", address, "--require-tokens", "--allow-weak-sandbox")
    assert "UNSAFE_BIND" in said
    assert "--tls-cert" in said


def test_port_that_others_reach_needs_somebody_with_a_token(folder: Path) -> None:
    made = make_certificates(folder)
    tls = ("--tls-cert", made.certificate("server"), "--tls-key", made.key("server"))
    said = start_refused("--data", folder / "data", *EVERYWHERE, *tls)
    assert "UNSAFE_BIND" in said
    assert "punnet token create" in said


def test_tls_options_that_do_not_go_together_are_named(folder: Path) -> None:
    made = make_certificates(folder)
    data = ("--data", folder / "data", "--listen", "127.0.0.1:0")
    assert "give both" in start_refused(*data, "--tls-cert", made.certificate("server"))
    assert "--client-ca needs" in start_refused(*data, "--client-ca", made.ca)
    both = ("--tls-cert", folder / "none.pem", "--tls-key", made.key("server"))
    assert "can't be read" in start_refused(*data, *both, "--allow-weak-sandbox")
    (folder / "letter").write_text("Dear server,")
    letter = ("--tls-cert", folder / "letter", "--tls-key", made.key("server"))
    assert "no PEM file" in start_refused(*data, *letter, "--allow-weak-sandbox")


def test_certificate_and_key_of_two_pairs_are_refused(folder: Path) -> None:
    made = make_certificates(folder, "other")
    pair = ("--tls-cert", made.certificate("server"), "--tls-key", made.key("other"))
    said = start_refused("--data", folder / "data", "--listen", "127.0.0.1:0", *pair, "--allow-weak-sandbox")
    assert "is the key not the certificate's?" in said


def test_revoking_the_last_token_of_a_data_folder_opens_no_port(folder: Path) -> None:
    server = AccountsServer(folder, port=True)
    token = server.token("acme", "read")
    server.command("token", "revoke", token.split("_")[1])
    server.start()
    try:
        accounts = Accounts(server.data / "accounts.sqlite3")
        assert [t.revoked is not None for t in accounts.tokens().values()] == [True]
        accounts.close()
        assert server.refuses_without_token()
    finally:
        server.close()


def test_loopback_port_of_a_folder_without_accounts_serves_its_machine(folder: Path) -> None:
    server = AccountsServer(folder, port=True)
    server.start()
    try:
        assert not server.refuses_without_token()
        assert not (server.data / "accounts.sqlite3").exists()
    finally:
        server.close()


def test_private_socket_stays_its_users_even_where_there_are_tokens(folder: Path) -> None:
    server = AccountsServer(folder)
    server.token("acme", "read")
    server.start()
    try:
        assert not server.refuses_without_token()
    finally:
        server.close()
