"""Packs images for `benchmarks.paper_table` into files of at most 60 MiB, their JPEG bytes as they are.

`python -m benchmarks.paper_pack --data ../shared/data --out packed`

Each `<part>-<n>.npz` holds `bytes` (uint8, all files one after the other), `ends` (int64) and `labels` (int64; -1 where
there is none). Parts: `train` and `test` of CIFAR-10, `pool` of Tiny-ImageNet, `labelled` (rows of `train` that may be
shown with their label, by class in the order in which more are taken). Compressed: all files have the same tables.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FILE_BYTES = 60 * 2**20
SIDE = 32


def main() -> None:
    """Pack everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper_pack", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shards", type=int, nargs="+", default=None, help="of the pool, else all")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    listed = {name: i for i, name in enumerate((options.data / "labelled-100.txt").read_text().split())}
    train = sorted(members(options.data / "cifar10-train.tar.gz"))
    names = sorted({Path(name).parent.name for name, _ in train})
    for part, rows in (("train", train), ("test", sorted(members(options.data / "cifar10-test.tar.gz")))):
        files = pack(options.out, part, [data for _, data in rows], [names.index(Path(n).parent.name) for n, _ in rows])
        print(f"{part}: {len(rows):,} images in {files} files")
    tars = sorted((options.data / "pool").glob("*.tar"))
    chosen_tars = tars if options.shards is None else [tars[number] for number in options.shards]
    pool = [data for tar in chosen_tars for _, data in members(tar)]
    print(f"pool: {len(pool):,} images in {pack(options.out, 'pool', pool, [-1] * len(pool))} files")
    chosen = sorted((listed[name], row) for row, (name, _) in enumerate(train) if name in listed)
    np.save(options.out / "labelled.npy", np.array([row for _, row in chosen], np.int64))


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of a tar's files."""
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            if file is not None:
                yield member.name, file.read()


def pack(out: Path, part: str, files: Sequence[bytes], labels: Sequence[int]) -> int:
    """Write the part's files; how many they are."""
    starts, size = [0], 0
    for row, data in enumerate(files):
        if size + len(data) > FILE_BYTES:
            starts.append(row)
            size = 0
        size += len(data)
    for number, start in enumerate(starts):
        rows = slice(start, starts[number + 1] if number + 1 < len(starts) else len(files))
        own = files[rows]
        np.savez_compressed(
            out / f"{part}-{number}.npz",
            bytes=np.frombuffer(b"".join(own), np.uint8),
            ends=np.cumsum([len(data) for data in own]),
            labels=np.array(labels[rows], np.int64),
        )
    return len(starts)


def unpack(folder: Path, part: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [n, 32, 32, 3] and labels [n] of a part; the decoded ones are kept beside it."""
    images, labels = [], []
    decoded = folder / f"{part}.images.npy"
    for path in sorted(folder.glob(f"{part}-*.npz"), key=lambda p: int(p.stem.rpartition("-")[2])):
        with np.load(path) as content:
            data, ends = content["bytes"].tobytes(), content["ends"]
            labels.append(content["labels"])
        if not decoded.is_file():
            starts = np.concatenate([[0], ends[:-1]])
            images += [_decoded(data[start:end]) for start, end in zip(starts, ends, strict=True)]
    if images:
        np.save(folder / f"{part}.part.npy", np.stack(images))
        (folder / f"{part}.part.npy").rename(decoded)
    return np.load(decoded), np.concatenate(labels)


def _decoded(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        sized = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(sized)


if __name__ == "__main__":
    main()
