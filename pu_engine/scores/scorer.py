"""The teacher on a batch of images: logits of image and mirror, features of each view."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pu_engine.errors import EngineError
from pu_engine.imaging.images import Pixels, decode_resized, reencode
from pu_engine.imaging.preprocessing import image_channels, mirrored_input, model_input
from pu_engine.results import load
from pu_engine.runtime.providers import tensorrt_options
from pu_engine.runtime.sessions import open_session
from pu_engine.types import Folder, Preprocessing, Tap, Teacher

TAPPED_MODEL = "tapped.onnx"
INPUT, LOGITS = "input", "logits"
# Small batches stay in the cache and keep the memory of large images flat; the figure is a constant of the
# teacher's size, so that the same images always share a batch. Batches of 16, 32 and 64 at 32 pixels cost the same
# CPU time within 3 %.
BATCH_PIXELS = 64 * 32 * 32
SMALLEST_BATCH, LARGEST_BATCH = 4, 256
GPU_BATCH = 128  # not run on hardware
LARGEST_FEATURE = float(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchedJpeg:
    """Quality and chroma that the labelled images have come through."""

    quality: int
    chroma: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scorer:
    """A teacher's session with the views that it scores; its methods may be called from several threads."""

    teacher: Teacher
    session: ort.InferenceSession
    matched: MatchedJpeg | None
    provider: str = "cpu"

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the feature views."""
        return ("clean",) if self.matched is None else ("clean", "matched")

    @property
    def width(self) -> int:
        """Columns of the features: all taps, then their spreads."""
        return features_width(self.teacher.taps)

    @property
    def batch(self) -> int:
        """Images to score at once."""
        return batch_size(self.teacher, self.provider)

    def score(self, images: list[bytes], *, labelled: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """Score up to `batch` encoded images.

        Args:
            labelled: these images show the matched view themselves.

        Returns:
            Logits [n, 2, K] float32 of image and mirror; features [n, V, D] float16, beyond its range clipped: of the
            clean view the mean over image and mirror, which costs nothing more.

        Raises:
            EngineError: IMAGE_REJECTED, MODEL_NONFINITE.
        """
        return self.outputs(self.pixels(images), labelled=labelled)

    def pixels(self, images: list[bytes]) -> Pixels:
        """Encoded images at the teacher's size, [n, H, W, C]; raises EngineError IMAGE_REJECTED."""
        size = self.teacher.preprocessing
        channels = image_channels(size)
        return np.stack([decode_resized(data, size.height, size.width, channels, size.fit) for data in images])

    def outputs(self, clean: Pixels, *, labelled: bool) -> tuple[NDArray[np.float32], NDArray[np.float16]]:
        """`score` of images that `pixels` decoded."""
        values = model_input(clean, self.teacher.preprocessing)
        logits, features = self._run(values)
        mirrored, mirrored_features = self._run(mirrored_input(values, self.teacher.preprocessing))
        views = [np.asarray((features + mirrored_features) / 2, np.float32)]
        if self.matched is not None and labelled:
            views.append(features)
        elif self.matched is not None:
            quality, chroma = self.matched.quality, self.matched.chroma
            matched = np.stack([reencode(image, quality, chroma) for image in clean])
            views.append(self._run(model_input(matched, self.teacher.preprocessing))[1])
        stacked = np.stack(views, axis=1).clip(-LARGEST_FEATURE, LARGEST_FEATURE).astype(np.float16)
        return np.stack([logits, mirrored], axis=1), stacked

    def logits(self, clean: Pixels) -> NDArray[np.float32]:
        """Logits [n, K] of up to `batch` images at the teacher's size, without their mirrors."""
        return self._run(model_input(clean, self.teacher.preprocessing))[0]

    def _run(self, values: NDArray[np.generic]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [n, K] and features [n, D] of n images' input tensor."""
        count = len(values)
        # TensorRT would build another engine for another shape.
        fixed = self.batch if self.provider == "tensorrt" else self.teacher.batch
        if fixed is not None and count < fixed:
            values = np.concatenate([values, np.zeros((fixed - count, *values.shape[1:]), values.dtype)])
        taps = self.teacher.taps
        names = [LOGITS, *(tap.name for tap in taps), *(tap.spread for tap in taps if tap.spread)]
        outputs = self.session.run(names, {INPUT: values})
        logits, *pooled = [np.asarray(output, np.float32)[:count] for output in outputs]
        features = np.concatenate([np.empty((count, 0), np.float32), *pooled], axis=1)
        if not (np.isfinite(logits).all() and np.isfinite(features).all()):
            raise EngineError(
                "MODEL_NONFINITE",
                "The teacher gives infinite values or NaN for some images.",
                "Check the model's weights; models in half precision may overflow.",
            )
        return logits, features


def features_width(taps: Sequence[Tap]) -> int:
    """Columns of the features: the taps' means, in order, then the spreads of those that have one."""
    return sum(tap.width * (2 if tap.spread else 1) for tap in taps)


def batch_size(teacher: Teacher, provider: str) -> int:
    """Images that a teacher scores at once: a constant, for another batch may round otherwise."""
    if teacher.batch is not None:
        return teacher.batch
    if provider != "cpu":
        return GPU_BATCH
    size = teacher.preprocessing
    return min(max(BATCH_PIXELS // (size.height * size.width), SMALLEST_BATCH), LARGEST_BATCH)


def open_scorer(
    intake: Folder, provider: str, matched: MatchedJpeg | None, *, model: Path | None = None, cache: Path | None = None
) -> Scorer:
    """A scorer of an intake's teacher.

    The session has one thread: workers call it side by side, so that nothing waits within an operator and
    results do not depend on the number of workers. Constants are not folded, for the model is a stranger's.

    Args:
        model: its int8 copy in place of it.
        cache: folder of a provider that compiles the model.
    """
    path = Path(intake.path)
    teacher = load(Teacher, path)
    options = None
    if provider == "tensorrt" and cache is not None:
        cache.mkdir(exist_ok=True)
        options = tensorrt_options(
            INPUT, _input_shape(teacher.preprocessing, batch_size(teacher, provider)), cache.resolve()
        )
    session = open_session(
        model or path / TAPPED_MODEL, threads=1, provider=provider, provider_options=options, fold_constants=False
    )
    return Scorer(teacher=teacher, session=session, matched=matched, provider=provider)


def _input_shape(how: Preprocessing, batch: int) -> tuple[int, ...]:
    """Shape of the input tensor of a batch."""
    one = np.zeros((1, how.height, how.width, image_channels(how)), np.uint8)
    return (batch, *model_input(one, how).shape[1:])
