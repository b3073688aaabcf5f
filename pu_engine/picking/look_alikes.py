"""Pool images that look alike, and pool images that look like images which must not be picked."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.imaging.archive import read_tar
from pu_engine.imaging.images import MAX_BYTES, decode
from pu_engine.imaging.labelled import LIMITS
from pu_engine.imaging.perceptual_hash import near, perceptual_hash
from pu_engine.pools.pool import PoolReader
from pu_engine.types import File

Mask = NDArray[np.bool_]


def surplus(leaders: NDArray[np.int64], score: NDArray[np.float64], eligible: Mask) -> Mask:
    """Eligible images with a better eligible one in their group; of equally good ones the first in the pool stays.

    Args:
        leaders: of each image the first of its group, [N].
        score: higher is better, [N].
        eligible: [N].
    """
    rows = np.flatnonzero(eligible)
    order = rows[np.lexsort((rows, -score[rows], leaders[rows]))]
    again = np.zeros(leaders.size, dtype=np.bool_)
    again[order[1:]] = leaders[order[1:]] == leaders[order[:-1]]
    return again


def excluded_rows(tar: File, pool: PoolReader) -> Mask:
    """Pool images that are, byte for byte or by their looks, among the images of a tar, [N].

    Raises:
        EngineError: ARCHIVE_REJECTED, DIGEST_MISMATCH, IMAGE_REJECTED, naming the member.
    """
    digests, hashes = [], []
    for member in read_tar(tar, LIMITS):
        what = f"The image {member.name!r} to exclude"
        if member.data is None:
            raise EngineError(
                "IMAGE_REJECTED",
                f"{what} has {member.size} bytes; at most {MAX_BYTES} are taken.",
                "Replace or leave out this image.",
                member=member.name,
                limit=MAX_BYTES,
            )
        try:
            hashes.append(perceptual_hash(decode(member.data, channels=3)))
        except EngineError as error:
            raise EngineError(
                error.code, f"{what} is not taken. {error.message}", error.remedy, member=member.name
            ) from error
        digests.append(hashlib.sha256(member.data).hexdigest())
    return pool.holds(digests) | near(pool.hashes, np.array(hashes, dtype=np.uint64))
