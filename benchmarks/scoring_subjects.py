"""Teachers and pools for `benchmarks.scoring`: real ones of the index, and a ResNet-18 made on the spot."""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.teacher_images import LabelledBytes, images_of, write_tar
from pu_engine.compression import run_stages
from pu_engine.imaging.archive import Limits, Member, read_members
from pu_engine.imaging.images import decode_resized
from pu_engine.pipeline import INGEST, INTAKE
from pu_engine.pools.pool import pool_folder
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256
from pu_engine.types import Folder

SIDE, CLASSES = 32, 10
PER_CLASS, IMAGENET_PER_CLASS = 20, 1
TRAIN_STEPS, TRAIN_BATCH, LEARNING_RATE = 100, 64, 2e-3
LIMITS = Limits(members=1_000_000, total_bytes=2**40, member_bytes=2**24)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One teacher with what it is scored on."""

    name: str
    intake: Folder
    labelled: Path  # a tar of PNG images, so that no view but image and mirror is asked for
    pool: Folder
    images: int
    int8: Path  # where the trial leaves the int8 copy
    network: str  # by which PyTorch builds the teacher, with its normalisation apart; empty where it can't


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How a subject is made; `share` of the images asked for keeps the arms' times alike."""

    name: str
    model: str
    dataset: str
    share: float
    network: str = ""


SOURCES = (
    Source(name="resnet20", model="cifar10_resnet20.onnx", dataset="cifar10-jpeg", share=1.0, network="cifar_resnet20"),
    Source(name="resnet56", model="cifar10_resnet56.onnx", dataset="cifar10-jpeg", share=0.4, network="cifar_resnet56"),
    Source(name="resnet18", model="", dataset="cifar10-jpeg", share=0.1, network="resnet18"),
    Source(
        name="mobilenet_224",
        model="imagenet_mobilenet_v1_025_keras.onnx",
        dataset="imagenet-sample",
        share=0.2,
    ),
)


def make(source: Source, *, data: Path, teachers: Path, work: Path, images: int) -> Subject:
    """Intake and ingest as in a job; what an earlier run left in `work` is used."""
    folder = work / source.name
    folder.mkdir(parents=True, exist_ok=True)
    model = teachers / source.model if source.model else folder / "teacher.onnx"
    if not model.exists():
        train_resnet18(data, model)
    sent = images_of(source.dataset, data).first(PER_CLASS if source.dataset == "cifar10-jpeg" else IMAGENET_PER_CLASS)
    labelled = folder / "labelled.tar"
    write_tar(labelled, [LabelledBytes(label=i.label, name=f"{i.name}.png", data=as_png(i.data)) for i in sent])
    spec = {"teacher": named(model), "display_name": source.name, "images": {"tar": named(labelled)}, "seed": 0}
    folders = dict(run_stages((INTAKE,), spec, folder / "stages", threads=1, progress=SilentProgress()))
    count = max(1, round(images * source.share))
    return Subject(
        name=source.name,
        intake=Folder(**folders["intake"]),
        labelled=labelled,
        pool=make_pool(data / "pool", work / f"pool-{count}", count),
        images=count,
        int8=folder / "int8.onnx",
        network=source.network,
    )


def make_pool(tars: Path, work: Path, images: int) -> Folder:
    """A pool of the first images of a folder of tars."""
    work.mkdir(parents=True, exist_ok=True)
    tar = work / "images.tar"
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as file:
        for member in islice(pool_members(tars), images):
            entry = tarfile.TarInfo(member.name)
            entry.size = len(member.data or b"")
            file.addfile(entry, io.BytesIO(member.data or b""))
    spec = {"name": "benchmark", "tars": [named(tar)]}
    folders = dict(run_stages((INGEST,), spec, work / "stages", threads=1, progress=SilentProgress()))
    return pool_folder(Path(folders["ingest"]["path"]))


def pool_members(tars: Path) -> Iterator[Member]:
    """Images of plain tars, in order."""
    for path in sorted(tars.glob("*.tar")):
        with path.open("rb") as stream:
            yield from (member for member in read_members(stream, LIMITS) if member.data)


def train_resnet18(data: Path, model: Path) -> None:
    """A ResNet-18 with a CIFAR stem after a short training: good enough that its int8 copy can be judged."""
    # Here, so that the arms' processes, which import this module, hold no torch that they do not use.
    import torch
    import torch.nn.functional as F

    from pu_engine.student.catalogue import build

    torch.manual_seed(0)
    torch.set_num_threads(1)
    found = images_of("cifar10-jpeg", data)
    pixels = np.stack([decode_resized(i.data, SIDE, SIDE, 3) for i in found.sent])
    values = (pixels.transpose(0, 3, 1, 2) / np.float32(255) - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    inputs = torch.from_numpy(values.astype(np.float32))
    labels = torch.tensor([found.classes.index(i.label) for i in found.sent])
    network = build("resnet18", SIDE, 3, CLASSES)
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    for _ in range(TRAIN_STEPS):
        rows = torch.randint(len(labels), (TRAIN_BATCH,))
        optimiser.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(inputs[rows]), labels[rows]))
        optimiser.step()
    network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about torch itself
        torch.onnx.export(
            network, (torch.zeros(2, 3, SIDE, SIDE),), model, input_names=["image"], output_names=["scores"],
            dynamic_shapes=({0: "batch"},), dynamo=True, external_data=False, verbose=False,
        )  # fmt: skip


def as_png(data: bytes) -> bytes:
    """The same pixels without JPEG's history."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def named(path: Path) -> dict[str, Any]:
    """A file as a stage's inputs name it."""
    return {"path": str(path.resolve()), "sha256": file_sha256(path)}
