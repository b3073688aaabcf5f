"""Stage verification: every hop of the chain measured on the same images, with its gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

from exporters.tensor_comparison import worst_node
from exporters.torch_to_onnx import INPUT
from pu_engine.errors import EngineError
from pu_engine.imaging.preprocessing import model_input
from pu_engine.progress import Progress
from pu_engine.results import file_sha256, load
from pu_engine.student.files import load_student
from pu_engine.training.batches import Part, load_part
from pu_engine.training.evaluation import predict
from pu_engine.training.loop import repeatable
from pu_engine.types import (
    StudentSpec,
    Teacher,
    Variant,
    Variants,
    Verdict,
    Verdicts,
    VerificationInputs,
)
from pu_engine.variants import hops
from pu_engine.variants.agreement import accuracy, argmax_agreement, mean_kl, relative_max_error, wilson_interval
from pu_engine.variants.divergence import first_difference
from pu_engine.variants.hops import EXACT, TOLERANCE, File, Images, Measured, gate_of, measure_hop, softmax
from pu_engine.variants.recommendation import recommend
from pu_engine.variants.timings import measure_latencies

COMPARED_IMAGES = 4  # of the worst ones, whose intermediate tensors are compared
HELD_OUT_ANSWERS = "held_out.answers.npy"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """What the hops are measured with; the logits [n, K] are the torch student's."""

    spec: StudentSpec
    module: nn.Module
    parity: Part
    parity_logits: NDArray[np.float32]
    held_out: Part
    held_out_logits: NDArray[np.float32]

    def images(self) -> Images:
        """The images of every hop."""
        return Images(parity=self.parity.images, held_out=self.held_out.images, labels=self.held_out.labels)

    def logits(self) -> NDArray[np.float32]:
        """The torch student's, of the parity images and then the held-out ones."""
        return np.concatenate([self.parity_logits, self.held_out_logits])


def run(inputs: VerificationInputs, out: Path, progress: Progress) -> Verdicts:
    """Measure teacher -> torch -> fp32 -> every other file, the accuracies and the latencies.

    Writes `held_out.answers.npy` [n] int64: the class that the student gives each held-out image.

    Raises:
        EngineError: PARITY_FAILED where the fp32 file differs from the network that it was made of;
            DIGEST_MISMATCH where an exported file is not the one that export wrote.
    """
    teacher = load(Teacher, inputs.intake.path)
    exported = load(Variants, inputs.export.path)
    folder = Path(inputs.export.path)
    check_digests(folder, exported)
    total = len(exported.variants) + 2
    with repeatable(inputs.threads):
        chain = start_chain(Path(inputs.gathering.path), Path(inputs.distillation.path))
        verdicts = [teacher_to_student(chain)]
        progress.update(1, total, "hop")
        fp32 = open_file(folder, next(v for v in exported.variants if v.name == "fp32"), chain.spec, inputs.threads)
        exact = student_to_fp32(chain, fp32, folder)
        verdicts.append(exact.verdict)
        progress.update(2, total, "hop")
        for variant in (v for v in exported.variants if v.name != "fp32"):
            file = open_file(folder, variant, chain.spec, inputs.threads)
            verdicts.append(fp32_to_variant(chain, exact.outputs, fp32, file, folder))
            progress.update(len(verdicts), total, "hop")
    warnings = withheld_warnings(verdicts, exported.variants)
    for text in warnings:
        progress.warn(text)
    latencies = measure_latencies(Path(inputs.intake.path), teacher, folder, exported.variants, chain.spec)
    progress.update(total, total, "hop")

    withheld = {v.withheld for v in verdicts if v.withheld}
    recommendations = recommend(exported.variants, latencies, withheld, exported.targets)
    n, labels = len(chain.held_out), chain.held_out.labels
    np.save(out / HELD_OUT_ANSWERS, chain.held_out_logits.argmax(axis=1).astype(np.int64))
    student_accuracy = accuracy(chain.held_out_logits, labels)
    low, high = wilson_interval(student_accuracy, n)
    return Verdicts(
        verdicts=tuple(verdicts),
        latencies=latencies,
        recommended=recommendations[0].variant,
        recommendations=recommendations,
        teacher_accuracy=accuracy(chain.held_out.targets[:, 0], labels),
        student_accuracy=student_accuracy,
        student_accuracy_low=low,
        student_accuracy_high=high,
        held_out=n,
        student_agreement=verdicts[0].agreement,
        warnings=(*exported.warnings, *warnings),
    )


def start_chain(data: Path, distillation: Path) -> Chain:
    """The parts that the hops are measured on, with the trained student's answers."""
    spec, module = load_student(distillation)
    parity, held_out = load_part(data, "parity", labelled=False), load_part(data, "held_out", labelled=True)
    return Chain(
        spec=spec,
        module=module,
        parity=parity,
        parity_logits=predict(module, parity.images, spec.preprocessing).numpy(),
        held_out=held_out,
        held_out_logits=predict(module, held_out.images, spec.preprocessing).numpy(),
    )


def open_file(folder: Path, variant: Variant, spec: StudentSpec, threads: int) -> File:
    """A variant read back from the disk, ready to run."""
    return hops.open_file(folder / variant.path, variant, spec.preprocessing, threads)


def teacher_to_student(chain: Chain) -> Verdict:
    """The compression itself, teacher against torch student; it has no gate."""
    before, after = chain.parity.targets[:, 0], chain.parity_logits
    return Verdict(
        hop="teacher -> torch",
        images=len(before),
        agreement=argmax_agreement(before, after),
        kl=mean_kl(before, after),
        max_error=relative_max_error(before, after),
        accuracy_before=accuracy(chain.held_out.targets[:, 0], chain.held_out.labels),
        accuracy_after=accuracy(chain.held_out_logits, chain.held_out.labels),
        gate="",
        passed=True,
    )


def student_to_fp32(chain: Chain, file: File, folder: Path) -> Measured:
    """The torch student against the fp32 file read back from disk, at several batches.

    Raises:
        EngineError: PARITY_FAILED; it names the worst images and the layer where the file parts from torch.
    """
    images = chain.images()
    before = softmax(chain.logits()) if file.probabilities() else chain.logits()
    measured = measure_hop("torch -> fp32", before, file, images, EXACT)
    verdict = measured.verdict
    if verdict.passed:
        return measured
    pixels = worst_pixels(images, measured, 1 if file.free() else measured.worst_batch)
    values = np.asarray(model_input(pixels, chain.spec.preprocessing), np.float32)
    model = onnx.load(folder / file.variant.path)
    node = first_difference(chain.module, model, values, file.feed(pixels), tolerance=TOLERANCE)
    worst = ", ".join(images.name(row) for row in measured.worst_rows)
    raise EngineError(
        "PARITY_FAILED",
        f"The hop {verdict.hop} missed its gate ({verdict.gate}): relative max error {verdict.max_error:.3g}, "
        f"argmax agreement {verdict.agreement:.4f} at batch {measured.worst_batch}. It differs from {node}; "
        f"worst images {worst}.",
        "Choose another student; this one's export can't be trusted.",
        hop=verdict.hop,
        limit=TOLERANCE,
        max_error=verdict.max_error,
        agreement=verdict.agreement,
        node=node,
        images=worst,
    )


def fp32_to_variant(chain: Chain, before: NDArray[np.float32], fp32: File, file: File, folder: Path) -> Verdict:
    """The fp32 file against one of another precision; a missed gate withholds that one.

    Args:
        before: [n, K] what the fp32 file gives.
    """
    images, variant = chain.images(), file.variant
    measured = measure_hop(f"fp32 -> {variant.name}", before, file, images, gate_of(variant))
    verdict = measured.verdict
    if verdict.passed:
        return verdict
    pixels = worst_pixels(images, measured, COMPARED_IMAGES if file.free() else measured.worst_batch)
    node = None  # other runtimes show no intermediate tensors
    if variant.format == "onnx":
        feed = {INPUT: file.feed(pixels)}
        node = worst_node(onnx.load(folder / fp32.variant.path), onnx.load(folder / variant.path), feed)
    return replace(
        verdict,
        withheld=variant.name,
        worst_images=tuple(images.name(row) for row in measured.worst_rows),
        worst_node="" if node is None else str(node),
    )


def worst_pixels(images: Images, measured: Measured, count: int) -> NDArray[np.uint8]:
    """Pixels of the images that differ the most, repeated where fewer are known than asked for."""
    rows = [measured.worst_rows[place % len(measured.worst_rows)] for place in range(count)]
    parity = len(images.parity)
    return np.stack([images.held_out[row - parity] if row >= parity else images.parity[row] for row in rows])


def withheld_warnings(verdicts: Sequence[Verdict], variants: Sequence[Variant]) -> list[str]:
    """Why variants are not handed out, with the numbers."""
    details = {v.name: v.details for v in variants}
    return [_withheld_words(v, details[v.withheld]) for v in verdicts if v.withheld]


def _withheld_words(verdict: Verdict, details: Mapping[str, str]) -> str:
    parts = [f"argmax agreement {percent(verdict.agreement)}"]
    if verdict.accuracy_before is not None and verdict.accuracy_after is not None:
        before, after = percent(verdict.accuracy_before), percent(verdict.accuracy_after)
        parts.append(f"held-out accuracy {after} after {before}")
    if details.get("within_budget") == "no":
        lost, agreed = (float(details[f"validation_{key}"]) for key in ("accuracy_lost", "agreement"))
        parts.append(f"on picked images {100 * lost:.1f} points lost and agreement {percent(agreed)}")
    worst = f" Worst images: {', '.join(verdict.worst_images)}." if verdict.worst_images else ""
    node = f" Worst node: {verdict.worst_node}." if verdict.worst_node else ""
    missed = f"the hop {verdict.hop} missed its gate ({verdict.gate})"
    return f"{verdict.withheld} is withheld: {missed}: {', '.join(parts)}.{worst}{node}"


def percent(share: float) -> str:
    """0.8231 -> '82.3 %'."""
    return f"{100 * share:.1f} %"


def check_digests(folder: Path, exported: Variants) -> None:
    """Make sure that what is verified is what export wrote."""
    stated = {v.path: v.sha256 for v in exported.variants}
    stated |= {file.path: file.sha256 for v in exported.variants for file in v.beside}
    for path, sha256 in stated.items():
        actual = file_sha256(folder / path)
        if actual != sha256:
            raise EngineError(
                "DIGEST_MISMATCH",
                f"{path} has the sha256 {actual}, export wrote {sha256}.",
                "Run the job again; the disk may be failing.",
                file=path,
            )
