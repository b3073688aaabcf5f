"""What scoring reads and leaves: frozen, with a JSON form."""

from __future__ import annotations

from dataclasses import dataclass, field

from pu_engine.jsonform import MEASURED
from pu_engine.types import Folder, LabelledImages, Tap

FP32, INT8 = "fp32", "int8"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringInputs:
    """`kept` are finished scorings whose shards may be taken over; neither it nor `settled` changes the result.

    `only` makes it a part: these shards and no labelled images. Parts are what several machines score; a whole scoring
    takes them over by `kept`. `settled` is a finished part whose precision the others share.
    """

    intake: Folder
    pool: Folder
    images: LabelledImages
    provider: str = "auto"  # auto | tensorrt | cuda | cpu
    threads: int = 1
    kept: tuple[str, ...] = ()
    only: tuple[str, ...] | None = None
    settled: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Trial:
    """The teacher's int8 copy beside fp32, on the same images in the same minutes."""

    images: int
    speedup: float  # of the network alone, by CPU time
    agreement: float  # share of images with fp32's argmax
    jaccard: float  # of the picks of both, by the default score with equal quotas


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """What the pool is scored in, settled before the work; `trial` is there where one was made."""

    name: str  # FP32 | INT8
    why: str
    trial: Int8Trial | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """The teacher on every pool image and labelled image.

    Files, one set a shard (`shard-00000`) and one for the labelled images (`labelled`):
    `<name>.logits.npy` [n, 2, K] float32 (image, mirror) and `<name>.features.npy` [n, V, D] float16 (views: clean,
    the mean over image and mirror; then matched, of the image alone, where there is one), all taps and then the spreads
    of those that have one. Rows are in index order. In int8 the logits order and pick; what a student learns from is
    computed in fp32 by gathering.
    """

    shards: tuple[str, ...]
    shard_keys: tuple[str, ...]  # what each shard's scores depend on; equal keys, equal scores
    images: int
    labelled: int
    classes: int
    views: tuple[str, ...]  # of the features
    taps: tuple[Tap, ...]
    provider: str
    precision: str  # fp32 | int8, of pool and labelled images alike
    precision_why: Precision = field(metadata=MEASURED)
    images_per_second: float = field(metadata=MEASURED)
    taken_over: int = field(metadata=MEASURED)  # pool images whose scores an earlier scoring had
    matched_quality: int | None = None
    matched_chroma: str | None = None
    warnings: tuple[str, ...] = ()
