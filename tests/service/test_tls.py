"""TLS and client certificates between the real client and a real server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from punnet import Client
from punnet.errors import AccessDenied, ServerUnavailable
from tests.service.accounts import AccountsServer, Certificates, make_certificates
from tests.service.running_server import image_tar
from tests.service.test_cli import COMMAND


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("pki"), "acme", "globex")


def serving(pki: Certificates, *options: str) -> Iterator[AccountsServer]:
    path = Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    tls = ("--tls-cert", str(pki.certificate("server")), "--tls-key", str(pki.key("server")))
    server = AccountsServer(path, port=True, options=(*tls, *options))
    server.token("somebody", "read")
    server.start()
    yield server
    server.close()
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def tls_server(pki: Certificates) -> Iterator[AccountsServer]:
    yield from serving(pki)


@pytest.fixture(scope="module")
def mtls_server(pki: Certificates) -> Iterator[AccountsServer]:
    yield from serving(pki, "--client-ca", str(pki.ca))


def test_client_uploads_makes_and_downloads_over_tls(tls_server: AccountsServer, pki: Certificates) -> None:
    tar = tls_server.folder / "pool.tar"
    tar.write_bytes(image_tar(5))
    token = tls_server.token("acme", "read", "submit", "admin")
    with Client(tls_server.address, token=token, ca=pki.ca) as client:
        job = client.create_pool("web", [tar])
        job.wait()
        assert [path.name for path in client.download(job.id, tls_server.folder / "out")] == ["pool.json"]
        assert [pool.name for pool in client.pools()] == ["web"]
        client.delete_pool("web")


def test_call_without_a_token_is_denied_and_typed(tls_server: AccountsServer, pki: Certificates) -> None:
    with Client(tls_server.address, ca=pki.ca) as client, pytest.raises(AccessDenied) as denied:
        client.jobs()
    assert denied.value.code == "TOKEN_INVALID"
    assert "--token-file" in denied.value.remedy


def test_server_of_an_unknown_authority_gets_no_token(tls_server: AccountsServer, tmp_path: Path) -> None:
    other = make_certificates(tmp_path)
    token = tls_server.token("acme", "read")
    with pytest.raises(ServerUnavailable):
        Client(tls_server.address, token=token, ca=other.ca, patience_seconds=0.1)


def test_plaintext_client_of_a_tls_port_is_turned_away(tls_server: AccountsServer) -> None:
    with pytest.raises(ServerUnavailable):
        Client(tls_server.address.removeprefix("https://"), patience_seconds=0.1)


def test_client_without_a_certificate_is_turned_away(mtls_server: AccountsServer, pki: Certificates) -> None:
    token = mtls_server.token("acme", "read")
    with pytest.raises(ServerUnavailable):
        Client(mtls_server.address, token=token, ca=pki.ca, patience_seconds=0.1)


def test_token_counts_beside_its_tenants_certificate_only(mtls_server: AccountsServer, pki: Certificates) -> None:
    token = mtls_server.token("acme", "read")

    def listed(name: str) -> int:
        certificate, key = pki.certificate(name), pki.key(name)
        with Client(mtls_server.address, token=token, ca=pki.ca, certificate=certificate, key=key) as client:
            return len(client.jobs())

    assert listed("acme") == 0
    with pytest.raises(AccessDenied) as denied:
        listed("globex")
    assert denied.value.code == "TOKEN_INVALID"


def test_command_line_takes_credentials_before_the_command(tls_server: AccountsServer, pki: Certificates) -> None:
    secret = tls_server.folder / "token"
    secret.write_text(tls_server.token("new", "read") + "\n")
    done = subprocess.run(
        [*COMMAND, "--token-file", str(secret), "--ca", str(pki.ca), "jobs", "--server", tls_server.address, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == {"jobs": []}


def test_health_is_asked_over_tls_without_a_token(tls_server: AccountsServer, pki: Certificates) -> None:
    asked = ["health", "--server", tls_server.address]
    trusting = subprocess.run([*COMMAND, "--ca", str(pki.ca), *asked], capture_output=True, text=True, check=False)
    assert (trusting.returncode, trusting.stderr) == (0, "")
    doubting = subprocess.run([*COMMAND, *asked], capture_output=True, check=False)
    assert doubting.returncode == 13


def test_command_line_takes_the_token_from_the_environment(tls_server: AccountsServer, pki: Certificates) -> None:
    command = [*COMMAND, "jobs", "--json"]
    variables = {"PUNNET_SERVER": tls_server.address, "PUNNET_CA": str(pki.ca)}

    def listed(token: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **variables, "PUNNET_TOKEN": token}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    assert listed(tls_server.token("acme", "read")).returncode == 0
    denied = listed(tls_server.token("acme", "submit"))
    assert denied.returncode == 14
    assert json.loads(denied.stdout)["error"]["code"] == "SCOPE_MISSING"


def test_private_client_says_who_serves_its_folder(tls_server: AccountsServer) -> None:
    with pytest.raises(ServerUnavailable) as refused:
        Client(data=tls_server.data)
    assert tls_server.address in refused.value.message
