"""Which file to take for each target, and why: never a slower one than fp32, never one that missed its gate."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from exporters.targets import Target
from exporters.targets import targets as targets_by_name
from pu_engine.teacher.fact_types import Latency
from pu_engine.types import Recommendation, Variant

HERE = "onnxruntime"  # the runtime that this machine's timings are of
WORTH = 1.05  # times fp32's speed: less is this machine's noise


def recommend(
    variants: Sequence[Variant], latencies: Sequence[Latency], withheld: Collection[str], targets: Sequence[str]
) -> tuple[Recommendation, ...]:
    """One file for each target, of those that were not withheld; of other runtimes' files those that are for it."""
    files = [v for v in variants if v.name not in withheld]
    here = [v for v in files if v.format == "onnx" or v.target == "cpu"]
    known = targets_by_name()
    return tuple(
        _for_cpu(here, latencies) if known[name].runtime == HERE else _for_device(files, known[name])
        for name in targets
    )


def speed_factors(latencies: Sequence[Latency], subject: str, batch: int) -> list[float]:
    """How many times fp32's speed a file has, at each number of threads that both were timed with."""
    fp32 = {r.threads: r.p50_ms for r in latencies if r.subject == "fp32" and r.batch == batch}
    own = {r.threads: r.p50_ms for r in latencies if r.subject == subject and r.batch == batch}
    return [fp32[threads] / own[threads] for threads in sorted(fp32.keys() & own.keys())]


def overall_factor(latencies: Sequence[Latency], subject: str) -> float:
    """The geometric mean over batches and threads; 0 where the file was not timed or is slower at one batch."""
    batches = sorted({r.batch for r in latencies if r.subject == subject})
    means = [_geometric_mean(factors) for batch in batches if (factors := speed_factors(latencies, subject, batch))]
    return 0.0 if not means or min(means) < 1.0 else _geometric_mean(means)


def _for_cpu(files: Sequence[Variant], latencies: Sequence[Latency]) -> Recommendation:
    factors = {v.name: overall_factor(latencies, v.name) for v in files if v.name != "fp32"}
    best = max(factors, key=lambda name: factors[name], default=None)
    if best is not None and factors[best] >= WORTH:
        return Recommendation(
            target="cpu",
            variant=best,
            reason=f"{factors[best]:.1f} times fp32's speed on this CPU, and it met its gate",
        )
    tried = ", ".join(factors) or "another precision"
    return Recommendation(target="cpu", variant="fp32", reason=f"{tried} was not faster on this CPU at every batch")


def _for_device(files: Sequence[Variant], target: Target) -> Recommendation:
    """The target's first file that passed; int8 not, for it was not timed there."""
    passed = [v.name for v in files if v.precision != "int8"]
    best = next((name for name in target.variants if name in passed), "fp32")
    why = "it met its gate"
    formats = {v.name: v.format for v in files}
    if formats.get(best, "onnx") != "onnx":
        why = f"the file for {formats[best]}, which you asked for; it met its gate"
    elif best == "fp16":
        why = "half the bytes of fp32, and it met its gate"
    elif "fp16" in target.variants:
        why = "no fp16 file that met its gate"
    reason = f"{why}; speed not measured: no such device here, so int8 is yours to time"
    return Recommendation(target=target.name, variant=best, reason=reason)


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))
