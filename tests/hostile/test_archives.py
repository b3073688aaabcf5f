"""Tars made to hurt a reader; each kind has a benign twin."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable

import numpy as np
import pytest

from pu_engine.errors import EngineError
from pu_engine.imaging.archive import Limits, Member, read_members

LIMITS = Limits(members=10, total_bytes=10_000, member_bytes=5_000)
MUTANTS = 500


def plain(name: str = "cat/1.jpg", data: bytes = b"image", **fields: object) -> bytes:
    """One member as 512-byte blocks, without the end mark."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + data + b"\0" * (-len(data) % 512)


END = b"\0" * 1024


def patched(block: bytes, at: int, value: bytes) -> bytes:
    """The header with a field overwritten and its checksum made right again."""
    changed = bytearray(block)
    changed[at : at + len(value)] = value
    changed[148:156] = b" " * 8
    changed[148:156] = b"%06o\0 " % sum(changed[:512])
    return bytes(changed)


def members(data: bytes, limits: Limits = LIMITS) -> list[Member]:
    return list(read_members(io.BytesIO(data), limits))


def rejection(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(EngineError) as caught:
        members(data, limits)
    assert caught.value.code == "ARCHIVE_REJECTED"
    return caught.value.message


def outcome(data: bytes) -> tuple[str, list[str]]:
    """What became of a tar, with the names that came out before."""
    names = []
    try:
        for member in read_members(io.BytesIO(data), LIMITS):
            names.append(member.name)
    except EngineError as error:
        return error.code, names
    return "read", names


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_benign_tars_read_as_tarfile_reads_them(form: int) -> None:
    names = ["cat/1.jpg", "d" * 60 + "/" + "e" * 60, "dog/2.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += ["katze/größe.jpg", "f" * 300 + "/1.jpg"]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        folder = tarfile.TarInfo("cat")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 600 + i, 1.5
            tar.addfile(info, io.BytesIO(bytes([i]) * (600 + i)))
    found = members(buffer.getvalue())
    assert [m.name for m in found] == names
    assert [m.data for m in found] == [bytes([i]) * (600 + i) for i in range(len(names))]


@pytest.mark.parametrize(
    "name", ["../x.jpg", "cat/../../x.jpg", "/etc/passwd", "cat\\..\\x", "a/..", "new\nline", "bidi\u202ename", ""]
)
def test_names_stay_inside(name: str) -> None:
    rejection(plain(name) + END)


@pytest.mark.parametrize(
    "kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"7", b"S", b"V"]
)
def test_only_regular_members_are_taken(kind: bytes) -> None:
    message = rejection(patched(plain("cat/1.jpg", b""), 156, kind) + END)
    assert "cat/1.jpg" in message


@pytest.mark.parametrize("key", ["GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.name", "size", "linkpath"])
def test_pax_headers_may_not_reshape_a_member(key: str) -> None:
    info = tarfile.TarInfo("cat/1.jpg")
    info.pax_headers = {key: "1"}
    rejection(info.tobuf(tarfile.PAX_FORMAT) + END)


def test_pax_path_is_checked_like_a_name() -> None:
    info = tarfile.TarInfo("cat/1.jpg")
    info.pax_headers = {"path": "../../x.jpg"}
    assert "leaves its folder" in rejection(info.tobuf(tarfile.PAX_FORMAT) + END)


def test_global_pax_path_is_refused() -> None:
    header = tarfile.TarInfo.create_pax_global_header({"path": "cat/other.jpg"})
    assert "overrides path" in rejection(header + plain() + END)


@pytest.mark.parametrize(
    "body", [b"9 path=x", b"99 path=x\n", b"0 path=x\n", b"x path=x\n", b"8 pathx\n", b"-8 path=x\n"]
)
def test_malformed_pax_records_are_refused(body: bytes) -> None:
    rejection(patched(plain("x", body), 156, b"x") + plain() + END)


def test_huge_extension_is_refused_unread() -> None:
    rejection(patched(plain("x", b""), 124, b"77777777777\0")[:156] + b"L" + b"\0" * 355 + END)
    block = patched(patched(plain("x", b""), 156, b"L"), 124, b"77777777777\0")
    assert "extended header" in rejection(block + END)


@pytest.mark.parametrize(
    "size", [b"-0000000001\0", b"\x80" + b"\0" * 11, b"\xff" * 12, b"0x10\0", b"1_0\0", b"\0" * 12]
)
def test_odd_sizes_are_refused(size: bytes) -> None:
    rejection(patched(plain("cat/1.jpg", b""), 124, size.ljust(12, b"\0")) + END)


def test_lying_size_ends_at_the_end() -> None:
    assert "cut" in rejection(patched(plain(), 124, b"00000007777\0") + END)
    assert "more than" in rejection(patched(plain(), 124, b"77777777777\0") + END)


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: b"PK\3\4" + data, lambda data: b"junk" * 200 + data])
def test_other_formats_are_refused(pack: Callable[[bytes], bytes]) -> None:
    rejection(pack(plain() + END) * 20)


def test_members_and_bytes_are_counted() -> None:
    assert len(members(b"".join(plain(f"c/{i}") for i in range(10)) + END)) == 10
    assert "10 members" in rejection(b"".join(plain(f"c/{i}") for i in range(11)) + END)
    assert "10000 bytes" in rejection(b"".join(plain(f"c/{i}", b"x" * 4000) for i in range(3)) + END)


def test_folders_count_as_members() -> None:
    rejection(b"".join(plain(f"c{i}/", b"", type=tarfile.DIRTYPE) for i in range(11)) + END)


def test_large_member_is_passed_over_without_its_data() -> None:
    found = members(plain("c/1", b"x" * 6000) + plain("c/2") + END)
    assert [(m.name, m.size, m.data) for m in found] == [("c/1", 6000, None), ("c/2", 5, b"image")]


@pytest.mark.parametrize("cut", [100, 512, 600, 1024, 1300])
def test_cut_tars_are_refused(cut: int) -> None:
    rejection((plain("c/1", b"x" * 700) + END)[:cut])


def test_tars_put_together_are_refused() -> None:
    whole = plain() + END
    assert "goes on" in rejection(whole + whole)
    assert len(members(whole + b"\0" * 10240)) == 1


def test_wrong_checksum_is_refused() -> None:
    block = bytearray(plain())
    block[0] ^= 1
    assert "checksum" in rejection(bytes(block) + END)


def test_name_that_is_not_utf8_is_refused() -> None:
    assert "UTF-8" in rejection(patched(plain(), 0, b"\xff\xfe") + END)


def test_mutants_read_or_are_refused() -> None:
    generator = np.random.default_rng(5)
    info = tarfile.TarInfo("größe/" + "x" * 120)
    data = plain() + info.tobuf(tarfile.PAX_FORMAT) + plain("c/2", b"y" * 900) + END
    for _ in range(MUTANTS):
        mutant = bytearray(data)
        for at in generator.integers(0, len(data), generator.integers(1, 4)):
            mutant[at] = generator.integers(0, 256)
        header = int(generator.integers(0, 3)) * 512
        if generator.random() < 0.7:
            mutant[header : header + 512] = patched(bytes(mutant[header : header + 512]), 0, b"")
        code, names = outcome(bytes(mutant))
        assert code in ("read", "ARCHIVE_REJECTED")
        assert all(".." not in name.split("/") and not name.startswith("/") for name in names)
