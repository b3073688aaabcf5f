"""Stage verification: every hop of the chain measured on the same images, with its gate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from exporters.torch_to_onnx import INPUT
from pu_engine.agreement import accuracy, argmax_agreement, mean_kl, relative_max_error, wilson_interval
from pu_engine.batches import Part, load_part
from pu_engine.errors import EngineError
from pu_engine.fact_types import Latency
from pu_engine.latency import measure_latency
from pu_engine.preprocessing import image_channels, model_input
from pu_engine.progress import Progress
from pu_engine.results import file_sha256, load
from pu_engine.sessions import open_session
from pu_engine.student_files import load_student
from pu_engine.training import predict, repeatable
from pu_engine.types import (
    Preprocessing,
    StudentSpec,
    Teacher,
    Variant,
    Variants,
    Verdict,
    Verdicts,
    VerificationInputs,
)

TOLERANCE = 1e-4  # relative to the largest logit; measured at most 2e-6 over a dozen families
MIDDLE_BATCH = 8
LATENCY_BATCHES = (1, 32)
LATENCY_THREADS = 1
CANONICAL = "canonical.onnx"
HELD_OUT_ANSWERS = "held_out.answers.npy"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chain:
    """What the hops are measured with; the logits [n, K] are the torch student's."""

    spec: StudentSpec
    parity: Part
    parity_logits: NDArray[np.float32]
    held_out: Part
    held_out_logits: NDArray[np.float32]


def run(inputs: VerificationInputs, out: Path, progress: Progress) -> Verdicts:
    """Measure teacher -> torch -> fp32 -> engines, the accuracies and the latencies.

    Writes `held_out.answers.npy` [n] int64: the class that the student gives each held-out image.

    Raises:
        EngineError: PARITY_FAILED where the ONNX file differs from the network that it was made of;
            DIGEST_MISMATCH where an exported file is not the one that export wrote.
    """
    teacher = load(Teacher, inputs.intake.path)
    exported = load(Variants, inputs.export.path)
    check_digests(Path(inputs.export.path), exported)
    fp32 = next(v for v in exported.variants if v.name == "fp32")
    with repeatable(inputs.threads):
        chain = start_chain(Path(inputs.gathering.path), Path(inputs.distillation.path))
        compression = teacher_to_student(chain)
        progress.update(1, 3, "hop")
        session = open_session(Path(inputs.export.path) / fp32.path, threads=inputs.threads)
        parity = student_to_fp32(chain, session, int(fp32.details["max_batch"]))
    progress.update(2, 3, "hop")
    warnings = [*exported.warnings, *(not_run(v) for v in exported.variants if v.format != "onnx")]
    for text in warnings[len(exported.warnings) :]:
        progress.warn(text)
    latencies = measure_latencies(Path(inputs.intake.path), teacher, Path(inputs.export.path) / fp32.path, chain.spec)
    progress.update(3, 3, "hop")

    n, labels = len(chain.held_out), chain.held_out.labels
    np.save(out / HELD_OUT_ANSWERS, chain.held_out_logits.argmax(axis=1).astype(np.int64))
    student_accuracy = accuracy(chain.held_out_logits, labels)
    low, high = wilson_interval(student_accuracy, n)
    return Verdicts(
        verdicts=(compression, parity),
        latencies=latencies,
        recommended=fp32.name,
        teacher_accuracy=accuracy(chain.held_out.targets[:, 0], labels),
        student_accuracy=student_accuracy,
        student_accuracy_low=low,
        student_accuracy_high=high,
        held_out=n,
        student_agreement=compression.agreement,
        warnings=tuple(warnings),
    )


def start_chain(data: Path, distillation: Path) -> Chain:
    """The parts that the hops are measured on, with the trained student's answers."""
    spec, module = load_student(distillation)
    parity, held_out = load_part(data, "parity", labelled=False), load_part(data, "held_out", labelled=True)
    return Chain(
        spec=spec,
        parity=parity,
        parity_logits=predict(module, parity.images, spec.preprocessing).numpy(),
        held_out=held_out,
        held_out_logits=predict(module, held_out.images, spec.preprocessing).numpy(),
    )


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


def student_to_fp32(chain: Chain, session: ort.InferenceSession, max_batch: int) -> Verdict:
    """The torch student against the ONNX file read back from disk, at several batches.

    Raises:
        EngineError: PARITY_FAILED.
    """
    before = np.concatenate([chain.parity_logits, chain.held_out_logits])
    batches = sorted({1, min(MIDDLE_BATCH, max_batch), max_batch})
    # Part by part: held-out photographs can take gigabytes, and stay on the disk.
    parts = (chain.parity.images, chain.held_out.images)
    runs = [
        np.concatenate([run_batched(session, images, chain.spec.preprocessing, batch) for images in parts])
        for batch in batches
    ]
    errors = [relative_max_error(before, after) for after in runs]
    agreements = [argmax_agreement(before, after, tie=TOLERANCE) for after in runs]
    worst = int(np.argmax(errors))
    held_out = slice(len(chain.parity), None)
    verdict = Verdict(
        hop="torch -> fp32",
        images=len(before),
        agreement=min(agreements),
        kl=max(mean_kl(before, after) for after in runs),
        max_error=errors[worst],
        accuracy_before=accuracy(before[held_out], chain.held_out.labels),
        accuracy_after=accuracy(runs[worst][held_out], chain.held_out.labels),
        gate=gate(batches),
        passed=max(errors) <= TOLERANCE and min(agreements) == 1.0,
    )
    if not verdict.passed:
        raise EngineError(
            "PARITY_FAILED",
            f"The hop {verdict.hop} missed its gate ({verdict.gate}): relative max error {verdict.max_error:.3g}, "
            f"argmax agreement {verdict.agreement:.4f} at batch {batches[worst]}.",
            "Choose another student; this one's export can't be trusted.",
            hop=verdict.hop,
            limit=TOLERANCE,
            max_error=verdict.max_error,
            agreement=verdict.agreement,
        )
    return verdict


def gate(batches: list[int]) -> str:
    """The bound of an exact hop, in words."""
    return f"relative max error <= {TOLERANCE:g} and equal argmax at batch {', '.join(map(str, batches))}"


def run_batched(
    session: ort.InferenceSession, images: NDArray[np.uint8], preprocessing: Preprocessing, batch: int
) -> NDArray[np.float32]:
    """Logits [N, K] of an ONNX student, `batch` images at a time.

    The last batch is filled up with the first images, so that each run really has that size.
    """
    parts = []
    for start in range(0, len(images), batch):
        rows = np.arange(start, start + batch) % len(images)
        parts.append(session.run(None, {INPUT: model_input(images[rows], preprocessing)})[0])
    return np.concatenate(parts)[: len(images)]


def measure_latencies(intake: Path, teacher: Teacher, student: Path, spec: StudentSpec) -> tuple[Latency, ...]:
    """Teacher and fp32 student at batches 1 and 32; a teacher of fixed batch at that one only, the student at it too.

    The teacher's constants are not folded, for the model is a stranger's.
    """
    rng = np.random.default_rng(0)
    teacher_batches = LATENCY_BATCHES if teacher.batch is None else (teacher.batch,)
    student_batches = tuple(sorted({*LATENCY_BATCHES, *teacher_batches}))
    subjects = (
        ("teacher", intake / CANONICAL, teacher.preprocessing, teacher_batches),
        ("fp32", student, spec.preprocessing, student_batches),
    )
    found = []
    for subject, path, preprocessing, batches in subjects:
        session = open_session(path, threads=LATENCY_THREADS, fold_constants=subject != "teacher")
        for batch in batches:
            shape = (batch, preprocessing.height, preprocessing.width, image_channels(preprocessing))
            tensor = model_input(rng.integers(0, 256, shape, dtype=np.uint8), preprocessing)
            found.append(measure_latency(session, tensor, subject=subject, threads=LATENCY_THREADS))
    return tuple(found)


def check_digests(folder: Path, exported: Variants) -> None:
    """Make sure that what is verified is what export wrote."""
    for variant in exported.variants:
        actual = file_sha256(folder / variant.path)
        if actual != variant.sha256:
            raise EngineError(
                "DIGEST_MISMATCH",
                f"{variant.path} has the sha256 {actual}, export wrote {variant.sha256}.",
                "Run the job again; the disk may be failing.",
                file=variant.path,
            )


def not_run(variant: Variant) -> str:
    """Why an engine's hop has no verdict."""
    reason = "Punnet builds these engines but does not run them" if torch.cuda.is_available() else "no such device here"
    return f"The hop fp32 -> {variant.name} was not run: {reason}. The engine was built; try it on the target first."
