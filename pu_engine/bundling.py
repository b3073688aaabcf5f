"""Stage bundling: for each target a bundle of the variants that passed, and an engine where one can be built here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters.bundle import BundleContent, BundledVariant, Interface, Parity, bundled_names, write_bundle
from exporters.engine_builder import EngineFacts, EngineRequest
from exporters.engine_child import cached_engine
from exporters.errors import ExportError
from exporters.ort_format import write_ort
from exporters.targets import Target, targets
from pu_engine.errors import EngineError
from pu_engine.imaging.preprocessing import image_channels
from pu_engine.jsonform import from_json, to_json
from pu_engine.progress import Progress
from pu_engine.results import load
from pu_engine.types import Preprocessing, StudentSpec, Variant, Variants, Verdicts
from pu_engine.variants import hops
from pu_engine.variants.bundle_types import Bundle, Bundles, BundlingInputs
from pu_engine.variants.hops import File

PARITY_IMAGES = 64
PARTS = {"pool": "parity", "own": "labelled"}  # of the training set
SCRATCH = ".bundling"
ON_DEVICE = "Build it on the device, with build_on_target.py of its bundle or with `punnet agent` there."
NOT_RUN = "Engines that were built but not run, for lack of their devices here: {}. Their bundles check and time them."


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the bundles of all targets share."""

    export: Path
    scratch: Path
    spec: StudentSpec
    variants: tuple[Variant, ...]  # that passed
    parity: Parity
    interface: Interface
    batches: tuple[int, int, int]
    threads: int


def run(inputs: BundlingInputs, out: Path, progress: Progress) -> Bundles:
    """Write a bundle for each target, and its engine where a builder here can serve it; a missing engine is a warning.

    Raises:
        EngineError: REQUEST_INVALID for an unknown target or source of parity images.
    """
    chosen = [_target(name) for name in dict.fromkeys(inputs.targets)]
    material = gather(inputs, out / SCRATCH)
    bundles, engines, warnings = [], [], []
    for index, target in enumerate(chosen):
        progress.update(index, len(chosen), "target")
        bundles.append(make_bundle(material, target, out))
        if target.has_engines:
            engine, refused = make_engine(material, target, out)
            engines += [engine] if engine is not None else []
            warnings += refused
    shutil.rmtree(material.scratch)
    if engines:
        warnings.append(NOT_RUN.format(", ".join(engine.name for engine in engines)))
    for text in warnings:
        progress.warn(text)
    progress.update(len(chosen), len(chosen), "target")
    return Bundles(bundles=tuple(bundles), engines=tuple(engines), warnings=tuple(warnings))


def gather(inputs: BundlingInputs, scratch: Path) -> Material:
    """The variants that passed, and the images that devices check themselves with."""
    scratch.mkdir(exist_ok=True)
    spec = from_json(StudentSpec, json.loads((Path(inputs.distillation.path) / "student.json").read_text()))
    withheld = {v.withheld for v in load(Verdicts, inputs.verification.path).verdicts}
    export, exported = Path(inputs.export.path), load(Variants, inputs.export.path).variants
    first = open_file(export / exported[0].path, exported[0], spec, inputs.threads)  # all take and give the same
    return Material(
        export=export,
        scratch=scratch,
        spec=spec,
        variants=tuple(v for v in exported if v.name not in withheld),
        parity=parity_of(Path(inputs.gathering.path), inputs.parity_images, first),
        interface=Interface(pixels=first.takes_pixels(), probabilities=first.probabilities(), free=first.free()),
        batches=profile(first.batches()),
        threads=inputs.threads,
    )


def profile(batches: Sequence[int]) -> tuple[int, int, int]:
    """Least, best and most images of a run, of one to three batches in order."""
    return batches[0], batches[len(batches) // 2], batches[-1]


def open_file(path: Path, variant: Variant, spec: StudentSpec, threads: int) -> File:
    """A file that Punnet wrote, ready to run."""
    return hops.open_file(path, variant, spec.preprocessing, threads)


def parity_of(gathering: Path, source: str, file: File) -> Parity:
    """PARITY_IMAGES images at most, and what the file takes for them.

    The user's own labelled images are taken only where they were asked for.
    """
    if source == "generated":
        images = generated_images(file.preprocessing)
    elif source in PARTS:
        stored = np.load(gathering / f"{PARTS[source]}.images.npy", mmap_mode="r", allow_pickle=False)
        images = np.array(stored[:PARITY_IMAGES])
    else:
        known = ", ".join(("generated", *PARTS))
        raise EngineError(
            "REQUEST_INVALID", f"There are no parity images {source!r}.", f"Choose from {known}.", source=source
        )
    return Parity(images=images, inputs=file.feed(images), source=source)


def generated_images(preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Blocks of coloured noise, coarse to fine, [PARITY_IMAGES, H, W, C]; the same each time."""
    generator = np.random.default_rng(0)
    height, width, channels = preprocessing.height, preprocessing.width, image_channels(preprocessing)
    images = np.empty((PARITY_IMAGES, height, width, channels), np.uint8)
    for index in range(PARITY_IMAGES):
        block = 2 ** (index % 4)
        shape = (-(-height // block), -(-width // block), channels)
        coarse = generator.integers(0, 256, shape, np.uint8)
        images[index] = coarse.repeat(block, 0).repeat(block, 1)[:height, :width]
    return images


def make_bundle(material: Material, target: Target, out: Path) -> Bundle:
    """Write `bundle-<target>.zip`."""
    variants = _chosen(material, target)
    path = out / f"bundle-{target.name}.zip"
    content = BundleContent(
        target=target,
        student=material.spec.name,
        labels=material.spec.class_names,
        preprocessing=to_json(material.spec.preprocessing),
        interface=material.interface,
        batches=material.batches,
        variants=tuple(_bundled(material, target, variant) for variant in variants),
        parity=material.parity,
    )
    sha256 = write_bundle(content, path)
    return Bundle(
        target=target.name,
        path=path.name,
        device=target.device,
        variants=tuple(v.name for v in variants),
        size=path.stat().st_size,
        sha256=sha256,
    )


def make_engine(material: Material, target: Target, out: Path) -> tuple[Variant | None, list[str]]:
    """An engine of the first variant in the target's order that a builder here takes, and why others were refused."""
    refused = []
    for variant in _chosen(material, target):
        request = EngineRequest(
            onnx=str(material.export / variant.path),
            builder=target.runtime,
            capabilities=target.capabilities,
            batches=material.batches,
        )
        try:
            built, facts = cached_engine(request, material.scratch)
        except ExportError as error:
            remedy = error.remedy if target.ahead_of_time else ON_DEVICE
            text = f"No engine for the target {target.name} of {variant.path}: {error.message} {remedy}"
            refused.append(text)
            if not target.ahead_of_time or ("file" not in error.details and "nodes" not in error.details):
                break  # the builder is missing or has no device: another variant meets the same
            continue
        name = "-".join((target.name, *facts.capabilities)).lower()
        path = f"student.{name}.engine"
        shutil.copyfile(built, out / path)
        return _engine_variant(name, path, target, variant, facts), refused
    return None, refused


def _engine_variant(name: str, path: str, target: Target, variant: Variant, facts: EngineFacts) -> Variant:
    return Variant(
        name=name,
        path=path,
        target=target.name,
        format=target.runtime,
        precision=variant.precision,
        size=facts.size,
        sha256=facts.sha256,
        seconds=facts.seconds,
        reproducible=False,
        details={
            "address": facts.address,
            "made_of": variant.name,
            "capabilities": ",".join(facts.capabilities),
            "profile": "/".join(str(batch) for batch in facts.batches),
            target.runtime: facts.version,
        },
    )


def _bundled(material: Material, target: Target, variant: Variant) -> BundledVariant:
    path = material.export / variant.path
    if target.runtime == "onnxruntime_mobile" and variant.format == "onnx":
        path = material.scratch / f"{Path(variant.path).stem}.ort"
        if not path.exists():
            write_ort(material.export / variant.path, path)
    file = open_file(path, variant, material.spec, material.threads)
    return BundledVariant(
        name=variant.name,
        precision=variant.precision,
        path=path,
        file=path.name,
        # One image at a time where that can be: a device that runs another batch compares with what none has touched.
        expected=file.run(material.parity.images, file.batches()[0]).astype(np.float32),
        beside=tuple(material.export / companion.path for companion in variant.beside),
    )


def _chosen(material: Material, target: Target) -> Sequence[Variant]:
    by_name = {v.name: v for v in material.variants}
    return [by_name[name] for name in bundled_names(list(by_name), target)]


def _target(name: str) -> Target:
    known = targets()
    if name not in known:
        raise EngineError(
            "REQUEST_INVALID", f"There is no target {name!r}.", f"Choose from {', '.join(known)}.", target=name
        )
    return known[name]
