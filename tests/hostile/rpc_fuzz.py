"""Random and boundary messages for every method, made from the descriptors: `python -m tests.hostile.rpc_fuzz`.

A call is a function of the seed and its number, so that any of them can be made again. Its answer must be typed and
name neither a path of the server nor a token. Half of its fields hold edges
of their types, some hold names of things that are there, and some messages are cut or changed in their bytes.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import shutil
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from punnet.v1 import blob_pb2
from server.accounts import SCOPES
from tests.service.accounts import CALL_SECONDS, AccountsServer, call, methods, path_of
from tests.service.running_server import chunks, image_tar

OPTIONS = (
    *("--require-tokens", "--calls-a-minute", "100000000", "--transfers-a-minute", "100000000"),
    *("--failures-a-minute", "100000000", "--queued-jobs", "4", "--tenant-storage-gib", "1"),
)
DEFECTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
}
DEFECTS |= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
# The first list of students waits for the engine's start, which goes on meanwhile; there is no need to wait with it.
SLOW_METHOD, SLOW_SECONDS = "ListStudents", 0.5
DEPTH = 6
REPEATS = (0, 0, 1, 1, 2, 3, 40)
WHOLE: tuple[int, ...] = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    256,
    4096,
    1 << 20,
    2**31 - 1,
    -(2**31),
    2**32 - 1,
    2**53 + 1,
    2**62,
)
WHOLE += (2**63 - 1, -(2**63), 2**64 - 1)
REAL = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan"), 5e-324)
TEXTS: tuple[str, ...] = (
    "",
    "a",
    "-",
    "..",
    "../../etc/passwd",
    "\0",
    "a\nb",
    "\u202eabc",
    "0" * 32,
    "f" * 64,
    "F" * 64,
    "x" * 65,
)
TEXTS += (
    "x" * 5000,
    "'; DROP TABLE job; --",
    "%s%n{}",
    "é",
    "\U0001f600",
    "null",
    "[1]",
    "WzFd",
    "WzEsMl0",
    "cpu",
    "auto",
)
# Positions of pages that no page had: all go through the decoder, and only the server's own should get past it.
PLACES = ((2**63, "a"), (0, "\ud800"), (-1, ""), (1, "0" * 32), ("\ud800",), ("\0",), ("a",), (1e308, "a"), (None,), ())
PAGE_TOKENS = tuple(base64.urlsafe_b64encode(json.dumps(place).encode()).decode() for place in PLACES)
RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_ENUM: (-(2**31), 2**31 - 1),
}


@dataclass
class Known:
    """Names of things that are there, so that calls come further than the first check."""

    blob: blob_pb2.BlobDigest
    texts: list[str]

    @classmethod
    def nothing(cls) -> Known:
        return cls(blob_pb2.BlobDigest(sha256="0" * 64), ["nothing"])

    def add(self, text: str) -> None:
        if text and text not in self.texts and len(self.texts) < 200:
            self.texts.append(text)


@dataclass(frozen=True)
class Finding:
    """A call that broke the rules."""

    number: int
    method: str
    status: str
    text: str


def message_of(kind: Any, chance: random.Random, known: Known, depth: int = 0) -> Message:
    """A message of a descriptor with about two thirds of its fields set."""
    made = GetMessageClass(kind)()
    for field in kind.fields:
        if chance.random() < 1 / 3 or (field.type == field.TYPE_MESSAGE and depth >= DEPTH):
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = field.message_type.fields
            for _ in range(chance.choice(REPEATS)):
                getattr(made, field.name)[value_of(key, chance, known)] = value_of(value, chance, known)
        elif field.is_repeated:
            for _ in range(chance.choice(REPEATS)):
                if field.type == field.TYPE_MESSAGE:
                    getattr(made, field.name).append(message_of(field.message_type, chance, known, depth + 1))
                else:
                    getattr(made, field.name).append(value_of(field, chance, known))
        elif field.type == field.TYPE_MESSAGE:
            getattr(made, field.name).CopyFrom(message_of(field.message_type, chance, known, depth + 1))
        else:
            setattr(made, field.name, value_of(field, chance, known))
    return made


def valid(method: MethodDescriptor, known: Known) -> Message:
    """A request that the server accepts, or would if what it names were of the right kind."""
    kind = GetMessageClass(method.input_type)
    fields = method.input_type.fields_by_name
    made = kind()
    for name, value in (("name", "web"), ("sha256", known.blob.sha256), ("id", known.texts[-1]), ("page_size", 3)):
        if name in fields:
            setattr(made, name, value)
    if "digest" in fields:
        made.digest.CopyFrom(known.blob)  # type: ignore[attr-defined]
    if "digests" in fields:
        made.digests.append(known.blob)  # type: ignore[attr-defined]
    if "tar_sha256" in fields:
        made.tar_sha256.append(known.blob.sha256)  # type: ignore[attr-defined]
    target: Any = made.compression if "compression" in fields else made  # type: ignore[attr-defined]
    if "teacher" in target.DESCRIPTOR.fields_by_name:
        target.teacher.sha256 = known.blob.sha256
        target.images.tar.sha256 = known.blob.sha256
    if "pool" in target.DESCRIPTOR.fields_by_name:
        target.pool = "web"
    return made


def altered(message: Message, chance: random.Random, known: Known) -> Message:
    """The message with up to three of its fields, at any depth, replaced by random ones."""
    for _ in range(chance.randrange(4)):
        inner: Any = message
        while True:
            field = chance.choice(list(inner.DESCRIPTOR.fields) or [None])
            if field is None:
                break
            single = field.type == field.TYPE_MESSAGE and not field.is_repeated
            if single and inner.HasField(field.name) and chance.random() < 0.8:
                inner = getattr(inner, field.name)
                continue
            random_one = message_of(inner.DESCRIPTOR, chance, known, DEPTH - 2)
            inner.ClearField(field.name)
            for set_field, value in random_one.ListFields():
                if set_field.name == field.name:
                    inner.MergeFrom(type(random_one)(**{field.name: value}))
            break
    return message


def value_of(field: FieldDescriptor, chance: random.Random, known: Known) -> Any:
    """An edge of the field's type, a random value, or something that is there."""
    if field.type in RANGES:
        low, high = RANGES[field.type]
        named = [value.number for value in field.enum_type.values] if field.enum_type else []
        return chance.choice([*named, *named, *(n for n in WHOLE if low <= n <= high), chance.randint(low, high)])
    if field.type in (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT):
        edges = REAL if field.type == FieldDescriptor.TYPE_DOUBLE else [x for x in REAL if not 1e38 < abs(x) < 1e308]
        return chance.choice([*edges, chance.uniform(-10, 10), chance.random()])
    if field.type == FieldDescriptor.TYPE_BOOL:
        return chance.random() < 0.5
    if field.type == FieldDescriptor.TYPE_BYTES:
        return chance.choice([b"", b"\0", chance.randbytes(100), b"x" * (300 << 10)])
    if field.type == FieldDescriptor.TYPE_STRING:
        return text_of(field, chance, known)
    raise TypeError(f"{field.full_name} has a type that is not made here")


def text_of(field: FieldDescriptor, chance: random.Random, known: Known) -> str:
    """A name of something that is there, an edge, or random characters."""
    if field.name == "page_token" and chance.random() < 0.8:
        return chance.choice(PAGE_TOKENS)
    if known.texts and chance.random() < 0.5:
        return chance.choice(known.texts)
    return chance.choice([*TEXTS, "".join(chr(chance.randrange(1, 0xD800)) for _ in range(chance.randrange(20)))])


def mended(message: Message, chance: random.Random) -> Message:
    """An upload whose chunk is as it should be, half of the time: else no chunk gets past the first check."""
    if isinstance(message, blob_pb2.UploadBlobRequest) and chance.random() < 0.5:
        message.crc32c = google_crc32c.value(message.data)
        message.offset = 0
    return message


def changed_bytes(raw: bytes, chance: random.Random) -> bytes:
    """The message as it is, or, one time in five, cut or changed."""
    kind = chance.randrange(10)
    if kind == 0:
        return raw[: chance.randrange(len(raw) + 1)]
    if kind == 1:
        noise = bytearray(raw or b"\x0a\x05")
        for _ in range(chance.randrange(1, 8)):
            noise[chance.randrange(len(noise))] = chance.randrange(256)
        return bytes(noise) + chance.choice([b"", b"\xff\xff\xff\xff\xff", struct.pack("<Q", chance.getrandbits(64))])
    return raw


def requests(method: MethodDescriptor, seed: int, number: int, known: Known) -> list[bytes]:
    """What call `number` sends."""
    chance = random.Random(f"{seed}/{number}/{method.full_name}")
    count = chance.choice((0, 1, 1, 2, 3)) if method.client_streaming else 1
    if chance.random() < 0.5:
        made = [altered(valid(method, known), chance, known) for _ in range(count)]
    else:
        made = [mended(message_of(method.input_type, chance, known), chance) for _ in range(count)]
    return [changed_bytes(message.SerializeToString(), chance) for message in made]


class Fuzz:
    """A server with a blob, a pool and a job, and calls to it."""

    def __init__(self, server: AccountsServer, seed: int) -> None:
        self.server = server
        self.seed = seed
        self.statuses: Counter[str] = Counter()
        self._token = server.token("fuzz", *SCOPES)
        self._methods = methods()
        self._channel = server.channel()
        tar = image_tar(4)
        upload = next(m for m in self._methods if m.name == "UploadBlob")
        sent = [m.SerializeToString() for m in chunks(tar)]
        call(self._channel, upload, sent, self._token)
        digest = next(chunks(tar)).digest
        self.known = Known(digest, ["web", digest.sha256, "fuzz", "cifar_resnet8"])

    def call(self, number: int) -> Finding | None:
        """Make one call; what is wrong with its outcome."""
        method = self._methods[number % len(self._methods)]
        sent = requests(method, self.seed, number, self.known)
        seconds = SLOW_SECONDS if method.name == SLOW_METHOD else CALL_SECONDS
        try:
            answer = call(self._channel, method, sent, self._token, seconds=seconds)
        except grpc.RpcError as error:
            status, text = error.code(), error.details() or ""
        else:
            status, text = grpc.StatusCode.OK, ""
            self._learn(answer)
        self.statuses[status.name] += 1
        late = (method.name, status) == (SLOW_METHOD, grpc.StatusCode.DEADLINE_EXCEEDED)
        told_too_much = any(secret in text for secret in (str(self.server.folder), self._token, "Traceback"))
        if (status not in DEFECTS or late) and not told_too_much:
            return None
        return Finding(number=number, method=path_of(method), status=status.name, text=text)

    def log_errors(self) -> list[dict[str, Any]]:
        """What the server logged as its own failures; jobs may fail, calls may not."""
        lines = (json.loads(line) for line in (self.server.data / "server.log").read_text().splitlines())
        return [
            line for line in lines if line["level"] == "ERROR" and line["logger"] in ("server.front", "server.jobs")
        ]

    def _learn(self, answer: Any) -> None:
        for name in ("job", "snapshot"):
            if answer is not None and name in answer.DESCRIPTOR.fields_by_name and answer.HasField(name):
                self.known.add(getattr(answer, name).id)
        for text in (getattr(answer, "next_page_token", ""),):
            self.known.add(text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="pn-", dir="/tmp"))
    server = AccountsServer(folder, options=OPTIONS)
    server.start()
    print(f"seed {options.seed}, calls {options.first} to {options.first + options.count - 1}", flush=True)
    try:
        fuzz = Fuzz(server, options.seed)
        numbers = range(options.first, options.first + options.count)
        findings = [finding for number in numbers if (finding := fuzz.call(number))]
        logged = fuzz.log_errors()
    finally:
        server.close()
        shutil.rmtree(folder)
    for finding in findings:
        print(finding)
    for line in logged:
        print(json.dumps(line, indent=1))
    print(json.dumps({"calls": options.count, "statuses": fuzz.statuses, "findings": len(findings) + len(logged)}))
    return 1 if findings or logged else 0


if __name__ == "__main__":
    sys.exit(main())
