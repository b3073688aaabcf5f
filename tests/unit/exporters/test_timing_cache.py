from __future__ import annotations

import threading
from pathlib import Path

from exporters.timing_cache import TimingCache


def cache(folder: Path, device: str = "Some card") -> TimingCache:
    return TimingCache(folder=folder / "timings", version="10.16.1", device=device)


def test_what_is_merged_is_read_again(tmp_path: Path) -> None:
    assert cache(tmp_path).read() == b""
    cache(tmp_path).merge(lambda others: others + b"first ")
    cache(tmp_path).merge(lambda others: others + b"second")
    assert cache(tmp_path).read() == b"first second"


def test_a_corrupted_cache_is_ignored_and_written_anew(tmp_path: Path) -> None:
    cache(tmp_path).merge(lambda others: b"timings")
    path = cache(tmp_path).path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert cache(tmp_path).read() == b""
    cache(tmp_path).merge(lambda others: others + b"new")
    assert cache(tmp_path).read() == b"new"


def test_a_cache_cut_off_in_its_digest_is_ignored(tmp_path: Path) -> None:
    cache(tmp_path).merge(lambda others: b"timings")
    cache(tmp_path).path.write_bytes(b"short")
    assert cache(tmp_path).read() == b""


def test_another_card_has_another_cache(tmp_path: Path) -> None:
    cache(tmp_path).merge(lambda others: b"timings")
    assert cache(tmp_path, "Another card").read() == b""
    assert cache(tmp_path, "../../etc").path.parent == tmp_path / "timings"


def test_builds_at_once_lose_no_timings(tmp_path: Path) -> None:
    def merge(number: int) -> None:
        cache(tmp_path).merge(lambda others: others + bytes([number]))

    threads = [threading.Thread(target=merge, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(cache(tmp_path).read()) == list(range(16))
