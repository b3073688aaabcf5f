"""One hop of the chain: what a file gives, measured against what the hop starts from, with its gate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from exporters.runtime_files import Run
from pu_engine.imaging.preprocessing import model_input
from pu_engine.types import Preprocessing, Variant, Verdict
from pu_engine.variants.agreement import accuracy, argmax_agreement, mean_kl, relative_max_error
from pu_engine.variants.runtime_variants import open_run

TOLERANCE = 1e-4  # of an exact hop, relative to the largest logit; measured at most 2e-6 over a dozen families
HALF_TIE = 2e-3  # relative to the largest logit: fp16 may order classes either way that are closer
MIDDLE_BATCH = 8
WORST_IMAGES = 5
SMALLEST_PROBABILITY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The bound of a hop."""

    agreement: float  # share of equal argmax, at least
    tie: float = 0.0  # classes this close, relative to the largest logit, may change places
    max_error: float | None = None  # relative to the largest logit, at most
    accuracy_loss: float | None = None  # on the held-out images, at most; one image is always allowed

    def words(self, batches: tuple[int, ...]) -> str:
        """The bound as it stands in the report."""
        parts = [] if self.max_error is None else [f"relative max error <= {self.max_error:g}"]
        parts.append("equal argmax" if self.agreement == 1.0 else f"argmax agreement >= {100 * self.agreement:g} %")
        if self.accuracy_loss is not None:
            points = f"{100 * self.accuracy_loss:g} points"
            parts.append(f"held-out accuracy at most {points} or one image lower, and the same on picked images")
        return f"{' and '.join(parts)} at batch {', '.join(map(str, batches))}"


EXACT = Gate(agreement=1.0, tie=TOLERANCE, max_error=TOLERANCE)
HALF = Gate(agreement=0.995, tie=HALF_TIE)
GATES = {"fp32": EXACT, "fp16": HALF}
INT8_AGREEMENT = 0.95


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Images:
    """What every hop runs on: pool images, then held-out ones with their labels [h]."""

    parity: NDArray[np.uint8]
    held_out: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.parity) + len(self.held_out)

    def name(self, row: int) -> str:
        """An image by its part and place."""
        place = row - len(self.parity)
        return f"held_out[{place}]" if place >= 0 else f"parity[{row}]"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class File:
    """A variant that can be run here."""

    variant: Variant
    infer: Run
    preprocessing: Preprocessing

    def batches(self) -> tuple[int, ...]:
        """Least, middle and largest batch; the one that the file is fixed at."""
        most = int(self.variant.details["max_batch"])
        return tuple(sorted({1, min(MIDDLE_BATCH, most), most})) if self.free() else (most,)

    def free(self) -> bool:
        """Whether any batch can be run."""
        return self.variant.details.get("batch", "free") == "free"

    def largest_batch(self) -> int | None:
        """What its runtime can take at most; None: as many images as there is memory for."""
        largest = self.variant.details.get("largest_batch")
        return None if largest is None else int(largest)

    def probabilities(self) -> bool:
        """Whether the output went through a softmax."""
        return self.variant.details.get("output") == "probabilities"

    def takes_pixels(self) -> bool:
        """Whether the preprocessing is inside the graph."""
        return self.variant.details.get("input") == "pixels"

    def feed(self, images: NDArray[np.uint8]) -> NDArray[np.generic]:
        """Images [n, H, W, C] as the file takes them."""
        if self.takes_pixels():
            return np.ascontiguousarray(images)
        return model_input(images, self.preprocessing)

    def run(self, images: NDArray[np.uint8], batch: int) -> NDArray[np.float32]:
        """Outputs [n, K], `batch` images at a time.

        The last batch is filled up with the first images, so that each run really has that size.
        """
        parts = []
        for start in range(0, len(images), batch):
            rows = np.arange(start, start + batch) % len(images)
            parts.append(self.infer(self.feed(images[rows])))
        return np.concatenate(parts)[: len(images)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measured:
    """A hop's verdict, and where it was worst."""

    verdict: Verdict
    worst_rows: tuple[int, ...]  # of the images, the largest difference first
    worst_batch: int
    outputs: NDArray[np.float32]  # at the worst batch


def open_file(path: Path, variant: Variant, preprocessing: Preprocessing, threads: int) -> File:
    """A variant read back from the disk, ready to run."""
    return File(variant=variant, infer=open_run(path, variant.format, threads), preprocessing=preprocessing)


def gate_of(variant: Variant) -> Gate:
    """The gate at which a variant is handed out."""
    if variant.precision in GATES:
        return GATES[variant.precision]
    return Gate(agreement=INT8_AGREEMENT, accuracy_loss=float(variant.details["accuracy_budget"]))


def measure_hop(hop: str, before: NDArray[np.float32], file: File, images: Images, gate: Gate) -> Measured:
    """Run the file at each of its batches and hold the worst against the gate.

    Args:
        before: [n, K] what the hop starts from gives, the parity images first; as the file gives it, be it logits or
            probabilities.
    """
    batches = file.batches()
    # Part by part: held-out photographs can take gigabytes, and stay on the disk.
    runs = [np.concatenate([file.run(part, batch) for part in (images.parity, images.held_out)]) for batch in batches]
    errors = [relative_max_error(before, after) for after in runs]
    agreements = [argmax_agreement(before, after, tie=gate.tie) for after in runs]
    worst = min(range(len(runs)), key=lambda i: (agreements[i], -errors[i]))
    held_out = slice(len(images.parity), None)
    start = accuracy(before[held_out], images.labels)
    end = min(accuracy(after[held_out], images.labels) for after in runs)
    met = min(agreements) >= gate.agreement and np.isfinite(max(errors))
    met = met and (gate.max_error is None or max(errors) <= gate.max_error)
    met = met and (gate.accuracy_loss is None or start - end <= max(gate.accuracy_loss, 1 / len(images.labels)))
    verdict = Verdict(
        hop=hop,
        images=len(before),
        agreement=min(agreements),
        kl=max(mean_kl(_as_logits(before, file), _as_logits(after, file)) for after in runs),
        max_error=max(errors),
        accuracy_before=start,
        accuracy_after=end,
        gate=gate.words(batches),
        passed=bool(met) and file.variant.details.get("within_budget", "yes") == "yes",
    )
    differences = np.abs(before - runs[worst]).max(axis=1)
    order = np.argsort(-np.nan_to_num(differences, nan=np.inf), kind="stable")[:WORST_IMAGES]
    return Measured(verdict=verdict, worst_rows=tuple(order.tolist()), worst_batch=batches[worst], outputs=runs[worst])


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of logits [N, K]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), np.float32)


def _as_logits(outputs: NDArray[np.float32], file: File) -> NDArray[np.float32]:
    if not file.probabilities():
        return outputs
    return np.asarray(np.log(np.maximum(outputs, SMALLEST_PROBABILITY)), np.float32)
