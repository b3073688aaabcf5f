"""What `benchmarks.scoring` measures, each arm in a process of its own, so that its peak memory is its own."""

from __future__ import annotations

import io
import json
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.scoring_subjects import CLASSES, Subject
from pu_engine import scoring
from pu_engine.imaging.images import decode_resized
from pu_engine.imaging.preprocessing import image_channels, model_input
from pu_engine.jsonform import from_json, to_json
from pu_engine.peak_memory import peak_bytes
from pu_engine.pools.pool import open_pool
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256, load, write_atomic
from pu_engine.runtime.sessions import open_session
from pu_engine.scores.int8_copy import INT8_MODEL, write_int8
from pu_engine.scores.precision import FILE as CHOICE
from pu_engine.scores.precision import Task, calibration, judge, try_out
from pu_engine.scores.score_types import INT8, Precision, ScoringInputs
from pu_engine.scores.scorer import TAPPED_MODEL, open_scorer
from pu_engine.types import File, LabelledEntry, LabelledImages, Preprocessing, Teacher

EAGER_BATCH = 128
BARE_BATCHES = (16, 64)  # the better of them counts: the bound is onnxruntime's, not a batch size's
BARE_PIXELS = 64 * 32 * 32
BARE_BLOCK = 8  # batches of a thread in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run of one arm; `cpu_seconds` are user and system time of the process and its children."""

    images: int
    cpu_seconds: float
    wall_seconds: float
    peak_bytes: int
    facts: dict[str, Any] = field(default_factory=dict)


class Clock:
    """CPU and wall time of the block that `timed` surrounds."""

    cpu = wall = 0.0


@contextmanager
def timed() -> Iterator[Clock]:
    """Measure a block."""
    clock, cpu, wall = Clock(), _cpu_seconds(), time.perf_counter()
    yield clock
    clock.cpu, clock.wall = _cpu_seconds() - cpu, time.perf_counter() - wall


def alone(arm: Callable[..., Measured], *arguments: Any) -> Measured:
    """Run an arm in a new process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(arm, *arguments).result()


def side_by_side(work: Callable[[list[Any]], None], items: list[Any], threads: int) -> None:
    """Work on equal parts in so many threads: cores that share their units slow each other in every arm alike."""
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, items[start::threads]) for start in range(threads)]:
            done.result()


def torch_eager(subject: Subject, threads: int) -> Measured:
    """Pillow, the usual tensor arithmetic and the network as PyTorch builds it, eager: image and mirror of each image.

    Its weights are random, which its speed does not depend on. Each of the threads runs batches of its own, and an
    operator has one thread: PyTorch's best per CPU second on networks this small.
    """
    from pu_engine.student.catalogue import build

    if not subject.network:
        return torch_twin(subject, threads)
    how = load(Teacher, subject.intake.path).preprocessing
    return _eager(build(subject.network, how.height, 3, CLASSES).eval(), subject, how, threads)


def torch_twin(subject: Subject, threads: int) -> Measured:
    """The same with the teacher's torch twin, whose normalisation is folded into its convolutions already."""
    from pu_engine.twin import torch_twin

    how = load(Teacher, subject.intake.path).preprocessing
    return _eager(torch_twin.load(Path(subject.intake.path)), subject, how, threads)


def _eager(network: Any, subject: Subject, how: Preprocessing, threads: int) -> Measured:
    import torch
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    files = _encoded(subject)
    width_axis = 3 if how.layout == "NCHW" else 2

    def run(part: list[bytes]) -> None:
        images: Any = _PillowImages(part, how)  # what a torch Dataset is by its methods
        with torch.inference_mode():
            for batch in DataLoader(images, batch_size=EAGER_BATCH):
                network(batch)
                network(batch.flip(width_axis))

    with timed() as clock:
        side_by_side(run, files, threads)
    return Measured(images=len(files), cpu_seconds=clock.cpu, wall_seconds=clock.wall, peak_bytes=peak_bytes())


class _PillowImages:
    """Encoded images as tensors, decoded when they are asked for."""

    def __init__(self, files: list[bytes], how: Preprocessing) -> None:
        import torch

        self._files, self._how = files, how
        self._mean, self._std = (torch.tensor(values).reshape(-1, 1, 1) for values in (how.mean, how.std))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        import torch
        from PIL import Image

        how = self._how
        with Image.open(io.BytesIO(self._files[index])) as image:
            resized = image.convert("RGB").resize((how.width, how.height), Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float().mul(how.scale)
        normal = values.sub(self._mean).div(self._std)
        ordered = normal.flip(0) if how.channels == "BGR" else normal
        return ordered if how.layout == "NCHW" else ordered.permute(1, 2, 0).contiguous()


def ort_bare(subject: Subject, threads: int) -> Measured:
    """onnxruntime alone on arrays in memory: the canonical model on image and mirror, at the better of two batches."""
    teacher = load(Teacher, subject.intake.path)
    how = teacher.preprocessing
    files = _encoded(subject)
    session = open_session(Path(subject.intake.path) / "canonical.onnx", threads=1, fold_constants=False)

    def run(views: list[Any]) -> None:
        for view in views:
            session.run(None, {"input": view})

    found = []
    for batch in [teacher.batch] if teacher.batch else _bare_batches(how.height * how.width):
        whole = len(files) - len(files) % (batch * threads)
        cpu = wall = 0.0
        for start in range(0, whole, batch * threads * BARE_BLOCK):  # not all arrays fit in memory at once
            stop = min(whole, start + batch * threads * BARE_BLOCK)
            views = []
            for first in range(start, stop, batch):
                pixels = np.stack([_pixels(data, how) for data in files[first : first + batch]])
                views += [model_input(pixels, how), model_input(pixels[:, :, ::-1], how)]
            with timed() as clock:
                side_by_side(run, views, threads)
            cpu, wall = cpu + clock.cpu, wall + clock.wall
        found.append(
            Measured(images=whole, cpu_seconds=cpu, wall_seconds=wall, peak_bytes=peak_bytes(), facts={"batch": batch})
        )
    return min(found, key=lambda measured: measured.cpu_seconds / measured.images)


def decode_bare(subject: Subject, threads: int) -> Measured:
    """Decoding and resizing alone, from bytes in memory."""
    how = load(Teacher, subject.intake.path).preprocessing
    files = _encoded(subject)

    def run(part: list[bytes]) -> None:
        for data in part:
            _pixels(data, how)

    with timed() as clock:
        side_by_side(run, files, threads)
    return Measured(images=len(files), cpu_seconds=clock.cpu, wall_seconds=clock.wall, peak_bytes=peak_bytes())


def pipeline(subject: Subject, threads: int, precision: str) -> Measured:
    """The stage's own work, from the pool's tars to the files of scores; the choice of the precision is made before."""
    files = LabelledImages(tar=File(path=str(subject.labelled), sha256=file_sha256(subject.labelled)))
    inputs = ScoringInputs(intake=subject.intake, pool=subject.pool, images=files, provider="cpu", threads=threads)
    with tempfile.TemporaryDirectory(prefix="punnet-scoring-") as out:
        if precision == INT8:
            shutil.copyfile(subject.int8, Path(out) / INT8_MODEL)
        chosen = Precision(name=precision, why="the benchmark asks for it")
        write_atomic(Path(out) / CHOICE, json.dumps(to_json(chosen)).encode())
        with timed() as clock:
            result = scoring.run(inputs, Path(out), SilentProgress())
    return Measured(
        images=result.images + result.labelled,
        cpu_seconds=clock.cpu,
        wall_seconds=clock.wall,
        peak_bytes=peak_bytes(),
        facts={"views": list(result.views), "provider": result.provider, "precision": result.precision},
    )


def int8_trial(subject: Subject, threads: int) -> Measured:
    """The int8 copy, left beside the pool, and the trial that a scoring of a large pool would make of it."""
    files = LabelledImages(tar=File(path=str(subject.labelled), sha256=file_sha256(subject.labelled)))
    inputs = ScoringInputs(intake=subject.intake, pool=subject.pool, images=files, provider="cpu", threads=threads)
    fp32 = open_scorer(subject.intake, "cpu", None)
    rows = json.loads((Path(subject.intake.path) / "labelled.json").read_text())
    entries = tuple(from_json(LabelledEntry, row) for row in rows)
    task = Task(inputs=inputs, pool=open_pool(subject.pool), entries=entries, matched=None)
    with tempfile.TemporaryDirectory(prefix="punnet-int8-") as scratch, timed() as clock:
        write_int8(Path(subject.intake.path) / TAPPED_MODEL, calibration(task, fp32), subject.int8, Path(scratch))
        trial = try_out(task, fp32, open_scorer(subject.intake, "cpu", None, model=subject.int8), SilentProgress())
    facts = {**to_json(trial), "chosen": judge(trial).name, "why": judge(trial).why}
    return Measured(
        images=trial.images, cpu_seconds=clock.cpu, wall_seconds=clock.wall, peak_bytes=peak_bytes(), facts=facts
    )


def _bare_batches(pixels: int) -> list[int]:
    return [max(1, BARE_PIXELS * batch // BARE_BATCHES[-1] // pixels) for batch in BARE_BATCHES]


def _encoded(subject: Subject) -> list[bytes]:
    """The pool's images as they stand in its tars."""
    return [data for _, data in open_pool(subject.pool).read(range(subject.images))]


def _pixels(data: bytes, how: Any) -> Any:
    return decode_resized(data, how.height, how.width, image_channels(how), how.fit)


def _cpu_seconds() -> float:
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
