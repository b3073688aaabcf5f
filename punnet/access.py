"""What a client shows to a server, and by what it knows the server: token, authority, certificate."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc.aio import Channel, insecure_channel, secure_channel

from punnet.errors import PunnetError, make_error

TLS_SCHEME = "https://"
TOKEN = re.compile(r"pnt_[0-9a-f]{16}_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """A client's credentials. Without any it reaches servers that need none.

    Args:
        token: as `punnet token create` printed it.
        ca: PEM file of the authority that signed the server's certificate; without it the system's authorities count.
        certificate, key: PEM files that the client shows to a server that wants a certificate.
    """

    token: str = field(default="", repr=False)  # a trace or a log may show the rest
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self, address: str, options: Sequence[tuple[str, int]]) -> Channel:
        """A channel to the address, over TLS where it starts with https://.

        Raises:
            AccessDenied: TOKEN_IN_PLAINTEXT where a token would leave this machine without TLS.
            InvalidRequest: a file that can't be read.
        """
        if address.startswith(TLS_SCHEME):
            credentials = grpc.ssl_channel_credentials(
                _content(self.ca, "ca"), _content(self.key, "key"), _content(self.certificate, "certificate")
            )
            return secure_channel(address.removeprefix(TLS_SCHEME).rstrip("/"), credentials, options=options)
        if self.token and not is_local(address):
            raise make_error(
                "TOKEN_IN_PLAINTEXT",
                f"A token would cross the network to {address} unencrypted.",
                f"Write {TLS_SCHEME}{address}, which uses TLS.",
                {"address": address},
            )
        return insecure_channel(address, options=options)


def access(
    token: str | None = None,
    *,
    token_file: Path | str | None = None,
    ca: Path | str | None = None,
    certificate: Path | str | None = None,
    key: Path | str | None = None,
) -> Access:
    """What is stated, else what PUNNET_TOKEN, PUNNET_TOKEN_FILE, PUNNET_CA, PUNNET_CERTIFICATE and PUNNET_KEY say.

    Raises:
        InvalidRequest: the token is none, its file can't be read, or only one of certificate and key is there.
    """
    if token is None and not token_file:
        token = os.environ.get("PUNNET_TOKEN") or None
    if token is None:
        file = _path(token_file, "PUNNET_TOKEN_FILE")
        token = (_content(file, "token_file") or b"").decode(errors="replace")
    found = Access(
        token=token.strip(),
        ca=_path(ca, "PUNNET_CA"),
        certificate=_path(certificate, "PUNNET_CERTIFICATE"),
        key=_path(key, "PUNNET_KEY"),
    )
    if found.token and not TOKEN.fullmatch(found.token):
        raise _invalid("token", "The token is not one that `punnet token create` printed: pnt_, an id, _, a secret.")
    if (found.certificate is None) != (found.key is None):
        raise _invalid("certificate", "A client's certificate needs its key, and the key its certificate.")
    return found


def is_local(address: str) -> bool:
    """Whether bytes to this address stay on this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, which may lead anywhere
        return False


def _path(stated: Path | str | None, variable: str) -> Path | None:
    name = stated or os.environ.get(variable)
    return Path(name) if name else None


def _content(path: Path | None, what: str) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise _invalid(what, f"{path} can't be read: {error.strerror}.") from error


def _invalid(field: str, message: str) -> PunnetError:
    remedy = (
        "Correct --token-file, --ca, --certificate or --key, or the variables of those names; see docs/accounts.md."
    )
    return make_error("REQUEST_INVALID", message, remedy, {"field": field})
