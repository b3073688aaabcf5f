"""What report.json holds: the finished stages' results as one JSON object."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pu_engine.jsonform import to_json
from pu_engine.planning.plan_types import PlanEstimates
from pu_engine.pools.pool_types import Pool
from pu_engine.results import load, read_manifest
from pu_engine.scores.score_types import Scores
from pu_engine.teacher.fact_types import Latency
from pu_engine.types import (
    ReportInputs,
    Selection,
    Student,
    Teacher,
    TrainingSet,
    Variant,
    Variants,
    Verdicts,
)
from pu_engine.variants.bundle_types import Bundles

STAGE_NAMES = ("intake", "scoring", "selection", "gathering", "distillation", "export", "verification", "bundling")
CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Every earlier stage's result; `manifests` by stage name, in the order in which they ran."""

    teacher: Teacher
    scores: Scores
    selection: Selection
    training_set: TrainingSet
    student: Student
    variants: Variants
    verdicts: Verdicts
    bundles: Bundles
    pool: Pool
    plan: PlanEstimates | None
    manifests: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The teacher's and the student's median milliseconds for one image, batch and threads being equal."""

    subject: str
    batch: int
    threads: int
    teacher_ms: float
    student_ms: float
    factor: float


def read_results(inputs: ReportInputs, pool: Pool) -> Results:
    """The results in the folders of earlier stages."""
    return Results(
        teacher=load(Teacher, inputs.intake.path),
        scores=load(Scores, inputs.scoring.path),
        selection=load(Selection, inputs.selection.path),
        training_set=load(TrainingSet, inputs.gathering.path),
        student=load(Student, inputs.distillation.path),
        variants=load(Variants, inputs.export.path),
        verdicts=load(Verdicts, inputs.verification.path),
        bundles=load(Bundles, inputs.bundling.path),
        pool=pool,
        plan=inputs.plan,
        manifests={name: read_manifest(Path(getattr(inputs, name).path)) for name in STAGE_NAMES},
    )


def withheld_variants(verdicts: Verdicts) -> frozenset[str]:
    """Names of the variants that missed their gate."""
    return frozenset(v.withheld for v in verdicts.verdicts if v.withheld)


def verified_variants(verdicts: Verdicts) -> frozenset[str]:
    """Names of the variants that a hop ends at: they were run, whether they passed or not."""
    return frozenset(v.hop.rpartition(" -> ")[2] for v in verdicts.verdicts)


def passed_variants(results: Results) -> tuple[Variant, ...]:
    """The variants to hand out; engines are made of such only."""
    withheld = withheld_variants(results.verdicts)
    return (*(v for v in results.variants.variants if v.name not in withheld), *results.bundles.engines)


def speed(latencies: Sequence[Latency], recommended: str) -> Speed | None:
    """The student's speed beside the teacher's, at the smallest batch and fewest threads that both were timed at.

    The student is the recommended variant, or the first other one where that was not timed here (an engine
    for a device that this machine lacks); None where no two rows compare.
    """
    teacher = {(r.batch, r.threads): r for r in latencies if r.subject == "teacher"}
    students = [r for r in latencies if r.subject != "teacher" and (r.batch, r.threads) in teacher]
    if not students:
        return None
    subjects = list(dict.fromkeys(r.subject for r in students))
    subject = recommended if recommended in subjects else subjects[0]
    row = min((r for r in students if r.subject == subject), key=lambda r: (r.batch, r.threads))
    before = teacher[row.batch, row.threads]
    return Speed(
        subject=subject,
        batch=row.batch,
        threads=row.threads,
        teacher_ms=before.p50_ms / row.batch,
        student_ms=row.p50_ms / row.batch,
        factor=before.p50_ms / row.p50_ms,
    )


def report_json(results: Results) -> dict[str, Any]:
    """The content of report.json."""
    return {
        "teacher": _teacher_json(results),
        "student": _student_json(results),
        "stages": {name: _stage_json(manifest) for name, manifest in results.manifests.items()},
        "scoring": _scoring_json(results.scores),
        "selection": _selection_json(results),
        "verdicts": to_json(results.verdicts.verdicts),
        "latencies": to_json(results.verdicts.latencies),
        "variants": _variants_json(results),
        "not_made": to_json(results.variants.not_made),
        "bundles": to_json(results.bundles.bundles),
        "recommendations": to_json(results.verdicts.recommendations),
        "warnings": list(warnings_of(results)),
        "conditions": conditions(results),
        "plan": plan_json(results),
    }


def plan_json(results: Results) -> dict[str, Any] | None:
    """What the plan foretold beside what came; None where the job was made from none.

    `moved` is the share of the planned picks that went to another class.
    """
    plan, selection = results.plan, results.selection
    if plan is None:
        return None
    expected = selection.expected
    planned, came = np.array(plan.class_counts, float), np.array(selection.class_counts, float)
    comparable = planned.size == came.size and planned.sum() > 0 and came.sum() > 0
    return {
        "seconds": dict(plan.seconds),
        "memory_bytes": dict(plan.memory_bytes),
        "figures": [
            {"name": "training steps", "planned": plan.steps, "came": results.student.steps},
            {"name": "pool images", "planned": plan.pool_images, "came": selection.pool_images},
            {"name": "picked images", "planned": plan.picked, "came": selection.picked},
            {"name": "score", "planned": plan.score, "came": selection.score},
            {"name": "prior", "planned": plan.prior, "came": selection.prior},
            {
                "name": "expected precision of the picks",
                "planned": plan.precision,
                "came": expected.precision if expected else None,
            },
        ],
        "moved": float(np.abs(planned / planned.sum() - came / came.sum()).sum() / 2) if comparable else None,
    }


def warnings_of(results: Results) -> tuple[str, ...]:
    """Every stage's warnings, in the order of the stages, each once."""
    sources = (results.teacher, results.scores, results.selection, results.variants, results.verdicts, results.bundles)
    texts = (text for source in sources for text in source.warnings)
    return tuple(dict.fromkeys((*texts, *parity_warnings(results.training_set))))


def parity_warnings(training_set: TrainingSet) -> tuple[str, ...]:
    """What the agreement on pool images is worth where too few of them stayed unpicked."""
    trained = training_set.parity - training_set.parity_unpicked
    if not trained:
        return ()
    compared = f"{trained} of the {training_set.parity} pool images on which student and teacher are compared"
    return (f"{compared} were trained on, for too few were left unpicked: the agreement on them flatters the student.",)


def log_lines(results: Results) -> list[str]:
    """What each stage took and warned of, a line each, in the order in which they ran."""
    lines = []
    for name, manifest in results.manifests.items():
        memory = manifest["peak_memory_bytes"] / 2**20
        lines.append(f"{name}: {manifest['seconds']:.1f} s, {memory:.0f} MiB at most")
        lines += [f"{name}: warning: {text}" for text in manifest["result"].get("warnings", ())]
    return lines


def conditions(results: Results) -> dict[str, Any]:
    """Where the figures were measured; the provider is the one that scored the pool."""
    return {
        "cores": os.cpu_count(),
        "cpu": cpu_model(),
        "platform": platform.platform(),
        "provider": results.scores.provider,
        "engine": results.manifests["verification"]["engine"],
        "versions": results.manifests["verification"]["versions"],
    }


def cpu_model() -> str:
    """The processor's name as the kernel says it; the architecture where it does not."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.machine()


def _teacher_json(results: Results) -> dict[str, Any]:
    facts: dict[str, Any] = to_json(results.teacher)
    name = facts.pop("display_name")
    del facts["warnings"]
    return {"name": name, **facts, "held_out_accuracy": results.verdicts.teacher_accuracy}


def _student_json(results: Results) -> dict[str, Any]:
    verdicts, spec = results.verdicts, results.student.spec
    timed = speed(verdicts.latencies, verdicts.recommended)
    return {
        **to_json(spec),
        "steps": results.student.steps,
        "final_loss": results.student.final_loss,
        "target_scale": results.student.target_scale,
        "targets": results.student.targets,
        "budget": results.student.budget,
        "images_per_second": results.student.images_per_second,
        "candidates": to_json(results.student.candidates),
        "recommended": verdicts.recommended,
        "accuracy": verdicts.student_accuracy,
        "accuracy_low": verdicts.student_accuracy_low,
        "accuracy_high": verdicts.student_accuracy_high,
        "held_out": verdicts.held_out,
        "held_out_agreement": results.student.held_out_agreement,
        "agreement": verdicts.student_agreement,
        "parity_images": results.training_set.parity,
        "parity_unpicked": results.training_set.parity_unpicked,
        "parameter_factor": results.teacher.parameters / spec.parameters,
        "speed": None if timed is None else to_json(timed),
    }


def _stage_json(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: manifest[key] for key in ("seconds", "peak_memory_bytes", "versions")}


def _scoring_json(scores: Scores) -> dict[str, Any]:
    """How the pool was scored, and why in this precision."""
    return {
        "provider": scores.provider,
        "precision": scores.precision,
        "why": scores.precision_why.why,
        "trial": to_json(scores.precision_why.trial),
        "images_per_second": scores.images_per_second,
        "taken_over": scores.taken_over,
    }


def _selection_json(results: Results) -> dict[str, Any]:
    facts: dict[str, Any] = to_json(results.selection)
    del facts["warnings"]
    matched = None
    if results.scores.matched_quality is not None:
        matched = {"quality": results.scores.matched_quality, "chroma": results.scores.matched_chroma}
    return {
        **facts,
        "class_names": list(results.teacher.class_names),
        "pool": results.pool.name,
        "bad_images": results.pool.bad_images,
        "matched": matched,
    }


def _variants_json(results: Results) -> list[dict[str, Any]]:
    withheld, verified = withheld_variants(results.verdicts), verified_variants(results.verdicts)
    return [
        {
            **to_json(v),
            "verified": v.name in verified,
            "withheld": v.name in withheld,
            "recommended": v.name == results.verdicts.recommended,
        }
        for v in (*results.variants.variants, *results.bundles.engines)
    ]
