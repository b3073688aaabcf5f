"""What an ingest remembers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pu_engine.imaging.perceptual_hash import NEAR_BITS, distance
from pu_engine.pools.known_images import KnownImages
from pu_engine.pools.pool_index import read_index, write_index

# Few bits, so that images near each other come often.
hashes = st.lists(st.integers(0, 2**12 - 1).map(lambda bits: bits * 0x1001001001), max_size=40)


def sha(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def expected_leaders(phashes: list[int]) -> list[str | None]:
    """The rule of the module by comparing with every leader."""
    leaders: list[tuple[str, int]] = []
    found: list[str | None] = []
    for number, phash in enumerate(phashes):
        near = [(distance(phash, other), place) for place, (_, other) in enumerate(leaders)]
        best = min(near, default=(NEAR_BITS + 1, 0))
        found.append(leaders[best[1]][0] if best[0] <= NEAR_BITS else None)
        if found[-1] is None:
            leaders.append((str(number), phash))
    return found


@settings(deadline=None)
@given(hashes)
def test_bands_find_the_leader_that_a_full_search_finds(phashes: list[int]) -> None:
    known = KnownImages()
    found = [known.place(str(n), sha(str(n)), phash)[1] for n, phash in enumerate(phashes)]
    assert found == expected_leaders(phashes)


def test_every_hash_within_the_bound_is_found() -> None:
    generator = np.random.default_rng(0)
    known = KnownImages()
    leader = int(generator.integers(0, 2**63))
    known.place("first", sha("first"), leader)
    for number in range(300):
        bits = generator.choice(64, NEAR_BITS, replace=False)
        near = leader ^ sum(1 << int(bit) for bit in bits)
        assert known.place(str(number), sha(str(number)), near) == (None, "first")


def test_same_bytes_are_exact_duplicates_and_not_near_ones() -> None:
    known = KnownImages()
    assert known.place("a", sha("x"), 5) == (None, None)
    assert known.place("b", sha("x"), 5) == ("a", None)
    assert known.place("c", sha("x"), 5) == ("a", None)


def row(key: str, phash: int, duplicate: str | None, near: str | None) -> dict[str, object]:
    fixed = {"status": "ok", "reason": "", "offset": 0, "size": 1, "format": "jpeg", "width": 1, "height": 1}
    source = sha(duplicate or key)
    return {
        **fixed,
        "key": key,
        "sha256": source,
        "source_sha256": source,
        "phash": phash,
        "duplicate_of": duplicate,
        "near_duplicate_of": near,
    }


def test_restored_knowledge_goes_on_as_if_it_had_seen_the_images(tmp_path: Path) -> None:
    names = ["a.jpg", "a.jpg", "b.jpg", "a.png", "c.jpg", "a.jpg"]
    phashes = [0, 2**40 - 1, 1, 3, 2**64 - 1, 2**40]
    for cut in range(len(names)):
        whole, resumed = KnownImages(), KnownImages()
        rows = []
        for name, phash in zip(names[:cut], phashes[:cut], strict=True):
            key = whole.unique_key(name)
            rows.append(row(key, phash, *whole.place(key, sha(key), phash)))
        write_index(tmp_path / "i.arrow", rows)
        resumed.restore(read_index(tmp_path / "i.arrow"))
        for name, phash in zip(names[cut:], phashes[cut:], strict=True):
            key = whole.unique_key(name)
            assert resumed.unique_key(name) == key
            assert resumed.place(key, sha(key), phash) == whole.place(key, sha(key), phash)
