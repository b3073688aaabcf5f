"""Stage: plain tars of images become a pool, immutable shards with an index each; or new shards of a pool.

A pool is a folder with `shard-00000.tar`, ... (WebDataset layout: one member `<key>.jpg` or `<key>.png` an image),
`shard-00000.arrow`, ... and, written last, `pool.json`. The same tars give the same bytes, whatever the number of
threads and however often the run was killed on the way. Appending writes only what is new: the earlier shards stay as
they are, and whoever publishes the result puts them beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc

from pu_engine.errors import EngineError
from pu_engine.imaging.archive import Limits, Member, read_tar
from pu_engine.imaging.image_check import CheckedImage, check_image
from pu_engine.imaging.images import MAX_BYTES, is_image
from pu_engine.jsonform import from_json, to_json
from pu_engine.pools.known_images import KnownImages
from pu_engine.pools.pool import POOL, open_pool
from pu_engine.pools.pool_index import BAD, index_name, read_index
from pu_engine.pools.pool_types import IngestInputs, Pool, Shard, Shrink
from pu_engine.pools.shard_writer import ShardWriter
from pu_engine.prefetch import prefetched
from pu_engine.progress import Progress
from pu_engine.results import canonical_json, file_sha256, write_atomic

LIMITS = Limits(members=5_000_000, total_bytes=4 * 2**40, member_bytes=MAX_BYTES)
BAD_SHARE_WARNED = 0.01
REASONS_WARNED = 3
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".jp2", ".heic", ".avif")
BATCH_IMAGES, BATCH_BYTES = 64, 16 * 2**20  # what one thread checks at a time; several wait in memory
RESUME = ".ingest.json"


@dataclass(slots=True, kw_only=True)
class _Counts:
    """Of a whole pool."""

    images: int = 0
    bad_images: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, reason: str, duplicate_of: str | None, near_duplicate_of: str | None) -> None:
        self.images += not reason
        self.bad_images += bool(reason)
        self.duplicates += duplicate_of is not None
        self.near_duplicates += near_duplicate_of is not None
        if reason:
            self.reasons[reason] += 1

    def restore(self, index: pa.Table) -> None:
        reasons = index.filter(pc.equal(index["status"], BAD))["reason"].to_pylist()
        self.reasons.update(reasons)
        self.bad_images += len(reasons)
        self.images += index.num_rows - len(reasons)
        self.duplicates += index.num_rows - index["duplicate_of"].null_count
        self.near_duplicates += index.num_rows - index["near_duplicate_of"].null_count


def run(inputs: IngestInputs, out: Path, progress: Progress) -> Pool:
    """Write the pool; a killed run goes on behind the last shard that it finished.

    Duplicates are recorded and kept. Undecodable images stand in the index as bad and are never picked.

    Raises:
        EngineError: ARCHIVE_REJECTED, DIGEST_MISMATCH, or POOL_INVALID where no image is usable or the pool to append
            to is damaged.
    """
    if inputs.shard_images < 1:
        raise ValueError(f"shard_images is at least 1, not {inputs.shard_images}")
    base = open_pool(inputs.pool).pool if inputs.pool else None
    known, counts = KnownImages(), _Counts()
    earlier = list(base.shards) if base else []
    for shard in earlier:
        _restore(Path(inputs.pool.path) if inputs.pool else out, shard, known, counts)
    before = counts.images + counts.bad_images, counts.bad_images
    counts.reasons.clear()
    finished = _resumable(inputs, out)
    for shard in finished:
        _restore(out, shard, known, counts)
    done_before = counts.images + counts.bad_images - before[0]

    shrink = base.shrink if base else inputs.shrink
    shards = _write_shards(inputs, out, progress, known=known, counts=counts, shrink=shrink,
                           finished=finished, skip=done_before, first=len(earlier))  # fmt: skip
    new, new_bad = counts.images + counts.bad_images - before[0], counts.bad_images - before[1]
    if new == new_bad:
        raise EngineError(
            "POOL_INVALID",
            f"No image for the pool {inputs.name!r} is usable; {new_bad} could not be decoded.",
            "Pack JPEG or PNG files as plain tars.",
            bad_images=new_bad,
        )
    if new_bad > BAD_SHARE_WARNED * new:
        progress.warn(_bad_text(new_bad, new, counts.reasons))
    pool = Pool(
        name=inputs.name,
        images=counts.images,
        bad_images=counts.bad_images,
        duplicates=counts.duplicates,
        near_duplicates=counts.near_duplicates,
        size=sum(shard.size for shard in [*earlier, *shards]),
        shards=(*earlier, *shards),
        shrink=shrink,
    )
    write_atomic(out / POOL, json.dumps(to_json(pool), indent=1, sort_keys=True).encode())
    (out / RESUME).unlink(missing_ok=True)
    return pool


def _write_shards(
    inputs: IngestInputs,
    out: Path,
    progress: Progress,
    *,
    known: KnownImages,
    counts: _Counts,
    shrink: Shrink | None,
    finished: Sequence[Shard],
    skip: int,
    first: int,
) -> list[Shard]:
    """The new shards, `finished` ones among them, numbered from `first`; `skip` images stand in those."""
    shards = list(finished)
    total = sum(Path(tar.path).stat().st_size for tar in inputs.tars)
    done = 0
    writer: ShardWriter | None = None
    try:
        batches = _batches(_image_members(inputs), skip)
        for checked in prefetched(lambda batch: [check_image(m, shrink) for m in batch], batches, inputs.threads):
            for image in checked:
                if writer is None or not (image.reason or writer.has_room(len(image.data), inputs.shard_images)):
                    if writer is not None:
                        shards.append(writer.finish())
                        _note_resumable(inputs, out, shards)
                    writer = ShardWriter(out, first + len(shards))
                _add(writer, image, known, counts)
                done += image.source_size
            figures = {"images": counts.images, "bad_images": counts.bad_images}
            progress.update(min(done, total), total, "bytes", figures)
        if writer is not None and writer.entries:
            shards.append(writer.finish())
    finally:
        if writer is not None:
            writer.close()
    progress.update(total, total, "bytes", {"images": counts.images, "bad_images": counts.bad_images})
    return shards


def _add(writer: ShardWriter, image: CheckedImage, known: KnownImages, counts: _Counts) -> None:
    key = known.unique_key(image.name)
    duplicate_of = near_duplicate_of = None
    if image.source_sha256 is not None and image.phash is not None:
        duplicate_of, near_duplicate_of = known.place(key, image.source_sha256, image.phash)
    writer.add(key, image, duplicate_of=duplicate_of, near_duplicate_of=near_duplicate_of)
    counts.add(image.reason, duplicate_of, near_duplicate_of)


def _image_members(inputs: IngestInputs) -> Iterator[Member]:
    """Members that are images, or claim to be by their name."""
    for tar in inputs.tars:
        for member in read_tar(tar, LIMITS):
            path = PurePosixPath(member.name)
            claims = path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
            if claims or (member.data is not None and is_image(member.data)):
                yield member


def _batches(members: Iterator[Member], skip: int) -> Iterator[list[Member]]:
    """Members in order without the first `skip`, which are read for the tars' digests only."""
    batch: list[Member] = []
    held = 0
    for number, member in enumerate(members):
        if number < skip:
            continue
        if batch and (len(batch) == BATCH_IMAGES or held + member.size > BATCH_BYTES):
            yield batch
            batch, held = [], 0
        batch.append(member)
        held += member.size if member.data is not None else 0
    if batch:
        yield batch


def _restore(folder: Path, shard: Shard, known: KnownImages, counts: _Counts) -> None:
    index = read_index(folder / index_name(shard.name))
    known.restore(index)
    counts.restore(index)


def _resume_key(inputs: IngestInputs) -> str:
    """What a killed run must have had in common with this one, so that its shards are this one's."""
    content = {
        "tars": [tar.sha256 for tar in inputs.tars],
        "pool": inputs.pool.sha256 if inputs.pool else None,
        "shrink": inputs.shrink,
        "shard_images": inputs.shard_images,
    }
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()


def _note_resumable(inputs: IngestInputs, out: Path, shards: Sequence[Shard]) -> None:
    note = {"key": _resume_key(inputs), "shards": [to_json(shard) for shard in shards]}
    write_atomic(out / RESUME, json.dumps(note).encode())


def _resumable(inputs: IngestInputs, out: Path) -> list[Shard]:
    """Shards that a killed run of the same inputs finished; everything else of it is removed."""
    shards: list[Shard] = []
    if (out / RESUME).is_file():
        note = json.loads((out / RESUME).read_text())
        if note["key"] == _resume_key(inputs):
            shards = [from_json(Shard, row) for row in note["shards"]]
    if not all(_is_whole(out, shard) for shard in shards):
        shards = []
    kept = {RESUME, *(f"{s.name}.tar" for s in shards), *(index_name(s.name) for s in shards)} if shards else set()
    for leftover in out.iterdir():
        if leftover.name not in kept:
            leftover.unlink()
    return shards


def _is_whole(out: Path, shard: Shard) -> bool:
    files = ((f"{shard.name}.tar", shard.sha256), (index_name(shard.name), shard.index_sha256))
    return all((out / name).is_file() and file_sha256(out / name) == sha256 for name, sha256 in files)


def _bad_text(bad: int, images: int, reasons: Counter[str]) -> str:
    commonest = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(REASONS_WARNED))
    return (
        f"{bad} of {images} images ({bad / images:.1%}) could not be decoded and will never be picked. "
        f"Commonest reasons: {commonest}"
    )
