"""What each file gives, one row a variant: size, what it keeps of fp32, and its speed on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Latency at one batch and number of threads; milliseconds of the whole batch."""

    batch: int
    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    images_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantRow:
    """One line of the table of files; accuracy and agreement are None where no hop ends at the file."""

    name: str
    size: int
    size_share: float  # of fp32's
    agreement: float | None
    accuracy: float | None
    state: str  # recommended for ... | passed | withheld | not run here
    note: str  # how int8 was found, or what it was converted from
    timings: tuple[Timing, ...]  # empty: not measured, no such device here


def variant_rows(data: Mapping[str, Any]) -> list[VariantRow]:
    """Rows of the report's variants, in their order.

    Args:
        data: as `report_data.report_json` makes it.
    """
    hops = {v["hop"].rpartition(" -> ")[2]: v for v in data["verdicts"]}
    whole = next(v["size"] for v in data["variants"] if v["name"] == "fp32")
    targets = {
        v["name"]: [r["target"] for r in data["recommendations"] if r["variant"] == v["name"]] for v in data["variants"]
    }
    return [_row(v, hops.get(v["name"]), whole, targets[v["name"]], data["latencies"]) for v in data["variants"]]


def _row(
    variant: Mapping[str, Any],
    hop: Mapping[str, Any] | None,
    whole: int,
    targets: Sequence[str],
    latencies: Sequence[Mapping[str, Any]],
) -> VariantRow:
    state = f"recommended for {', '.join(targets)}" if targets else "passed"
    if hop is None:
        state = "not run here"
    elif variant["withheld"]:
        state = "withheld"
    return VariantRow(
        name=variant["name"],
        size=variant["size"],
        size_share=variant["size"] / whole,
        agreement=None if hop is None else hop["agreement"],
        accuracy=None if hop is None else hop["accuracy_after"],
        state=state,
        note=_note(variant["details"]),
        timings=tuple(timing(row) for row in latencies if row["subject"] == variant["name"]),
    )


def _note(details: Mapping[str, str]) -> str:
    if "made_of" in details:
        return f"made of {details['made_of']}"
    if "calibration" not in details:
        return ""
    text = f"calibrated by {details['calibration']} on {details['calibration_images']} picked images"
    parts = [text]
    if taken := details["nodes_in_float"]:
        parts.append(f"{taken.count(',') + 1} nodes stay in float")
    if "search_ended" in details:
        parts.append(f"the search for them ended with {details['search_ended']}")
    if "training" in details:
        parts.append(f"trained for {details['training_steps']} steps against rounding: {details['training']}")
    return "; ".join(parts)


def timing(row: Mapping[str, Any]) -> Timing:
    """A latency's JSON form with its throughput."""
    return Timing(
        batch=row["batch"],
        threads=row["threads"],
        p50_ms=row["p50_ms"],
        p90_ms=row["p90_ms"],
        p99_ms=row["p99_ms"],
        images_per_second=1000 * row["batch"] / row["p50_ms"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A network in the plot of accuracy over latency: one image, one thread."""

    name: str
    milliseconds: float
    accuracy: float
    chosen: bool  # recommended for the CPU that the times are of


def tradeoff(data: Mapping[str, Any], teacher_accuracy: float) -> list[Point]:
    """The teacher and every file that was timed at the smallest batch on one thread."""
    accuracies = {row.name: row for row in variant_rows(data)}
    chosen = {r["variant"] for r in data["recommendations"] if r["target"] == "cpu"}
    points, seen = [], set()
    for row in sorted(data["latencies"], key=lambda r: r["batch"]):
        subject = row["subject"]
        known = accuracies.get(subject)
        accuracy = teacher_accuracy if subject == "teacher" else known.accuracy if known else None
        if row["threads"] != 1 or subject in seen or accuracy is None:
            continue
        seen.add(subject)
        points.append(
            Point(
                name=subject,
                milliseconds=row["p50_ms"] / row["batch"],
                accuracy=accuracy,
                chosen=subject in chosen,
            )
        )
    return points
