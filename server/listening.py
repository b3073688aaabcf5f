"""Where the server listens and who may reach it there: a socket of its user's own, or a port, with TLS or without."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

import grpc

from punnet.errors import PunnetError, make_error
from server.accounts import Accounts
from server.folders import DataFolder

SOCKET_PATH_BYTES = 107
PROBE_SECONDS = 2.0


class Refused(Exception):
    """The server must not start like this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files: the server's certificate chain and key; the authority that must have signed clients' certificates."""

    certificate: Path
    key: Path
    client_ca: Path | None

    def credentials(self) -> grpc.ServerCredentials:
        """What the port takes; raises Refused for a file that can't be read."""
        pair = (_pem(self.key, "--tls-key"), _pem(self.certificate, "--tls-cert"))
        authority = _pem(self.client_ca, "--client-ca") if self.client_ca else None
        return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """An address, as gRPC takes it, and what a caller there must show."""

    address: str
    loopback: bool  # reached from this machine only; a socket is too
    tls: TlsFiles | None = None
    require_tokens: bool = False

    @property
    def private(self) -> bool:
        """Only this user reaches a socket in a folder of its own; every user of the machine reaches a port."""
        return self.address.startswith("unix:")

    @property
    def asks_certificates(self) -> bool:
        """Whether clients must show a certificate of their own."""
        return self.tls is not None and self.tls.client_ca is not None

    def accounts(self, data: DataFolder) -> Accounts | None:
        """The accounts by which callers are admitted; None where whoever reaches the address is the user.

        A port asks for tokens wherever one was ever made for the data folder: revoking the last one opens nothing.

        Raises:
            PunnetError: UNSAFE_BIND for a port that other machines reach while nobody has a token.
        """
        exposed = not self.loopback
        if not exposed and not self.require_tokens and (self.private or not data.accounts.exists()):
            return None
        accounts = Accounts(data.accounts)
        if not accounts.tokens():
            if exposed:
                accounts.close()
                raise _unsafe(
                    f"{self.address} can be reached from other machines, and nobody has a token.",
                    f"Make one first: punnet token create --data {data.root} --tenant NAME",
                )
            if not self.require_tokens:
                accounts.close()
                return None
        return accounts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of an address."""
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path)
    where.add_argument("--listen", "--bind", dest="listen", metavar="HOST:PORT")
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate chain of a --listen port")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
    parser.add_argument(
        "--client-ca", type=Path, metavar="PEM", help="clients must show a certificate of this authority"
    )
    parser.add_argument(
        "--require-tokens", action="store_true", help="on a socket too, and on a loopback port before the first token"
    )


def listening_of(options: argparse.Namespace) -> Listening:
    """The address and its protection.

    Raises:
        Refused: an address that can't be bound, or options that don't go together.
        PunnetError: UNSAFE_BIND for a port that other machines reach without TLS.
    """
    if bool(options.tls_cert) != bool(options.tls_key):
        raise Refused("--tls-cert and --tls-key go together; give both.")
    if options.client_ca and not options.tls_cert:
        raise Refused("--client-ca needs --tls-cert and --tls-key.")
    tls = None
    if options.tls_cert:
        tls = TlsFiles(certificate=options.tls_cert, key=options.tls_key, client_ca=options.client_ca)
    if options.socket:
        if tls:
            raise Refused("a --socket needs no TLS: it never leaves this machine.")
        address, loopback = socket_address(options.socket.resolve()), True
    else:
        address, loopback = port_address(options.listen)
    if not loopback and tls is None:
        raise _unsafe(
            f"{address} can be reached from other machines, and there is no TLS.",
            "Give --tls-cert and --tls-key, or listen on 127.0.0.1.",
        )
    required = options.require_tokens or tls is not None
    return Listening(address=address, loopback=loopback, tls=tls, require_tokens=required)


def socket_address(path: Path) -> str:
    """gRPC's name of a Unix socket; raises Refused for a path that does not fit into one."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES:
        raise Refused(f"a socket's path has at most {SOCKET_PATH_BYTES} bytes, {path} has {length}; use a shorter one.")
    return f"unix:{path}"


def port_address(listen: str) -> tuple[str, bool]:
    """HOST:PORT as gRPC takes it, and whether it is this machine's loopback; raises Refused for anything else."""
    host, _, port = listen.rpartition(":")
    try:
        name = "127.0.0.1" if host == "localhost" else host.strip("[]")
        loopback = ipaddress.ip_address(name).is_loopback
        if not 0 <= int(port) <= 65535:
            raise ValueError(port)
    except ValueError:
        raise Refused(
            f"--listen takes an IP address and a port, for instance 127.0.0.1:7860 or 0.0.0.0:7860; got {listen!r}."
        ) from None
    return (f"[{name}]:{port}" if ":" in name else f"{name}:{port}"), loopback


def remove_dead_socket(path: Path) -> None:
    """Clear the way for our socket; raises Refused where a server listens there, or where a file is no socket."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise Refused(f"{path} is there and is no socket; name another path, or remove it.")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_SECONDS)
            probe.connect(str(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:  # nobody listens: a dead server left it
        path.unlink(missing_ok=True)
        return
    raise Refused(f"another server listens at {path}; stop it, or name another path.")


def _pem(path: Path, option: str) -> bytes:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise Refused(f"{option} {path} can't be read: {error.strerror}.") from error
    if b"-----BEGIN " not in text:
        raise Refused(f"{option} {path} is no PEM file; it has no line -----BEGIN ...-----.")
    return text


def _unsafe(message: str, remedy: str) -> PunnetError:
    return make_error("UNSAFE_BIND", message, remedy)
