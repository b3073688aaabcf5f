"""Images for the teachers of `benchmarks.intake`: some labelled ones to send, and others to measure on."""

from __future__ import annotations

import io
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

CIFAR_TEST_PER_CLASS = 200  # the index measured on the first 200 of each class by name
DIGITS_TRAINED = 1198  # the teachers were trained on the digits before
TEXT_SIDE = (48, 192)
TEXT_SEED = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledBytes:
    """An encoded image with its label."""

    label: str
    name: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherImages:
    """What one data set has for a teacher; `classes` are the labels in the order of its outputs."""

    sent: tuple[LabelledBytes, ...]
    measured: tuple[LabelledBytes, ...]
    classes: tuple[str, ...]

    def first(self, per_class: int) -> list[LabelledBytes]:
        """At most so many sent images of each label."""
        seen: defaultdict[str, int] = defaultdict(int)
        chosen = []
        for image in self.sent:
            seen[image.label] += 1
            if seen[image.label] <= per_class:
                chosen.append(image)
        return chosen

    @property
    def per_class(self) -> int:
        """The most images that one label has among the sent ones."""
        counts: defaultdict[str, int] = defaultdict(int)
        for image in self.sent:
            counts[image.label] += 1
        return max(counts.values())


@cache
def images_of(dataset: str, data: Path) -> TeacherImages:
    """The images of a data set of the teachers' index, or of `text` and `mnist-as-clothes`, which it lacks."""
    if dataset == "cifar10-jpeg":
        return _cifar(data)
    if dataset == "digits":
        return _digits()
    if dataset == "text":
        return _text_lines()
    folder = {"mnist": "mnist", "gtsrb": "gtsrb", "imagenet-sample": "imagenet-sample"}[dataset]
    return _halves(data / folder, {"mnist": 10, "gtsrb": 43, "imagenet-sample": 1000}[dataset])


def write_tar(path: Path, images: Iterable[LabelledBytes]) -> None:
    """The images as a user sends them: one plain tar of `<label>/<name>`."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for image in images:
            member = tarfile.TarInfo(f"{image.label}/{image.name}")
            member.size = len(image.data)
            tar.addfile(member, io.BytesIO(image.data))


def _cifar(data: Path) -> TeacherImages:
    wanted = (data / "labelled-100.txt").read_text().split()
    sent = _members(data / "cifar10-train.tar.gz", set(wanted))
    by_class: defaultdict[str, list[LabelledBytes]] = defaultdict(list)
    for image in _members(data / "cifar10-test.tar.gz", None).values():
        by_class[image.label].append(image)
    measured = [i for own in by_class.values() for i in sorted(own, key=lambda i: i.name)[:CIFAR_TEST_PER_CLASS]]
    return TeacherImages(
        sent=tuple(sent[name] for name in wanted), measured=tuple(measured), classes=tuple(sorted(by_class))
    )


def _members(path: Path, wanted: set[str] | None) -> dict[str, LabelledBytes]:
    found = {}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() and (wanted is None or member.name in wanted) else None
            if file is not None:
                label, _, name = member.name.rpartition("/")
                found[member.name] = LabelledBytes(label=label.rpartition("/")[2], name=name, data=file.read())
    return found


def _digits() -> TeacherImages:
    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    rows = [
        LabelledBytes(label=str(label), name=f"{index:04d}.png", data=_png(image))
        for index, (image, label) in enumerate(zip(pixels, digits.target, strict=True))
    ]
    return TeacherImages(
        sent=tuple(rows[:DIGITS_TRAINED]),
        measured=tuple(rows[DIGITS_TRAINED:]),
        classes=tuple(str(i) for i in range(10)),
    )


def _halves(folder: Path, classes: int) -> TeacherImages:
    """Half of each label's images to send, the others to measure; of a label's single image, in turns."""
    sent, measured = [], []
    for turn, own in enumerate(sorted((p for p in folder.iterdir() if p.is_dir()), key=lambda p: int(p.name))):
        images = [LabelledBytes(label=own.name, name=p.name, data=p.read_bytes()) for p in sorted(own.iterdir())]
        half = len(images) // 2 if len(images) > 1 else turn % 2
        sent += images[:half]
        measured += images[half:]
    return TeacherImages(sent=tuple(sent), measured=tuple(measured), classes=tuple(str(i) for i in range(classes)))


def _text_lines() -> TeacherImages:
    """Rendered lines of text, upright and upside down: the task of the text direction teacher."""
    generator = np.random.default_rng(TEXT_SEED)
    words = ("punnet", "classifier", "total 42.10", "invoice", "north gate", "No. 7", "Strawberries", "open 9-17")
    rows = []
    for index in range(80):
        back, ink = (int(v) for v in (generator.integers(180, 256), generator.integers(0, 90)))
        image = Image.new("RGB", TEXT_SIDE[::-1], (back, back, int(generator.integers(150, 256))))
        text = " ".join(str(generator.choice(words)) for _ in range(2))
        ImageDraw.Draw(image).text((4, 8), text, fill=(ink, ink, ink), font=ImageFont.load_default(size=24))
        turned = index % 2
        pixels = np.asarray(image)[::-1, ::-1] if turned else np.asarray(image)
        rows.append(LabelledBytes(label=("0", "180")[turned], name=f"{index:03d}.png", data=_png(pixels)))
    return TeacherImages(sent=tuple(rows[:40]), measured=tuple(rows[40:]), classes=("0", "180"))


def _png(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def label_index(classes: Sequence[str], offset: int) -> Mapping[str, int]:
    """Documented output index of each label."""
    return {label: index + offset for index, label in enumerate(classes)}
