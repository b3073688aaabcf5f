"""The trained student as ONNX files: fp32, fp16 and an int8 one for each kind of target."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exporters.calibration import Observed, observe
from exporters.errors import ExportError
from exporters.half_precision import ACTIVATION_LIMIT, to_half
from exporters.inference import logits_of, open_model
from exporters.int8_search import VALIDATION_BATCH, Budget, Found, Trials, search
from exporters.interface import Interface, Pixels, wrap
from exporters.onnx_file import write_model
from exporters.targets import targets
from exporters.torch_to_onnx import HOP, to_onnx
from pu_engine.errors import EngineError
from pu_engine.jsonform import to_json
from pu_engine.progress import Progress
from pu_engine.sample_images import Sample, calibration_and_validation
from pu_engine.student_files import load_student
from pu_engine.types import ExportInputs, ExportOptions, Preprocessing, StudentSpec, Variant

FILES = {  # variant -> file; fp32 is always made, for the others are verified against it
    "fp32": "student.onnx",
    "fp16": "student-fp16.onnx",
    "int8-cpu": "student-int8-cpu.onnx",
    "int8-trt": "student-int8-trt.onnx",
}
TARGET_OF = {"fp32": "cpu", "fp16": "rtx", "int8-cpu": "cpu", "int8-trt": "rtx"}
VALIDATION_AGREEMENT = 0.97  # of int8 with fp32; less is another network


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """What the files are made of and where they go; `calibration` and `validation` are disjoint samples."""

    spec: StudentSpec
    base: Any  # the fp32 graph: float32 in, logits out, batch free
    options: ExportOptions
    calibration: Sample
    validation: Sample
    threads: int
    out: Path


def wanted_variants(options: ExportOptions) -> tuple[str, ...]:
    """Names of the ONNX files to make, in the order of FILES."""
    known = targets()
    asked = options.variants or [name for target in options.targets for name in known[target].variants]
    return tuple(name for name in FILES if name == "fp32" or name in asked)


def write_variants(inputs: ExportInputs, out: Path, progress: Progress) -> tuple[list[Variant], list[str]]:
    """Write the ONNX files; why one of them could not be made is a warning.

    Raises:
        EngineError: EXPORT_FAILED where there is no fp32 file; it names the hop.
    """
    wanted = wanted_variants(inputs.export)
    spec, module = load_student(Path(inputs.distillation.path))
    started = time.monotonic()
    base = fp32_graph(spec, module)
    calibration, validation = calibration_and_validation(Path(inputs.gathering.path), spec.preprocessing)
    work = Work(
        spec=spec, base=base, options=inputs.export, calibration=calibration, validation=validation,
        threads=inputs.threads, out=out,
    )  # fmt: skip
    variants, warnings = [write(work, "fp32", base, started, {})], list[str]()
    progress.update(1, len(wanted), "variant")
    if len(wanted) == 1:
        return variants, warnings
    observed = _or_engine_error(lambda: observe(base, calibration.batches, threads=inputs.threads))
    for done, name in enumerate(wanted[1:], start=2):
        started = time.monotonic()
        try:
            model, details = half(work, observed) if name == "fp16" else int8(work, observed, name)
            variants.append(write(work, name, model, started, details))
        except ExportError as error:
            warnings.append(f"No {name} file: {error.message} {error.remedy}")
            progress.warn(warnings[-1])
        progress.update(done, len(wanted), "variant")
    return variants, warnings


def fp32_graph(spec: StudentSpec, module: nn.Module) -> Any:
    """The student's graph, of one logit for each class name.

    Raises:
        EngineError: EXPORT_FAILED, naming the hop.
    """
    with torch.no_grad():
        outputs = module(torch.zeros(1, spec.channels, spec.size, spec.size)).shape[1]
    if outputs != len(spec.class_names):
        raise EngineError(
            "EXPORT_FAILED",
            f"The student has {outputs} outputs and {len(spec.class_names)} class names (hop {HOP}).",
            "Train the student again: its weights and its description don't belong together.",
            hop=HOP,
            outputs=outputs,
            class_names=len(spec.class_names),
        )
    return _or_engine_error(lambda: to_onnx(module, size=spec.size, channels=spec.channels))


def half(work: Work, observed: Observed) -> tuple[Any, dict[str, str]]:
    """The fp16 graph, where activations leave half precision room.

    Raises:
        ExportError: a weight or an activation is too large.
    """
    tensor, largest = observed.largest()
    if largest > ACTIVATION_LIMIT:
        raise ExportError(
            f"The tensor {tensor!r} reaches {largest:.4g} on picked images; fp16 is safe up to {ACTIVATION_LIMIT:g}.",
            "Use the fp32 file or an int8 one.",
            tensor=tensor,
            largest=largest,
        )
    model = to_half(work.base)
    open_model(model, threads=work.threads)  # what does not load can't be verified
    return model, {"largest_activation": f"{largest:.4g}"}


def int8(work: Work, observed: Observed, name: str) -> tuple[Any, dict[str, str]]:
    """The int8 graph of a form, with how it was found."""
    session = open_model(work.base, threads=work.threads)
    trials = Trials(
        batches=work.validation.batches,
        reference=logits_of(session, work.validation.batches(VALIDATION_BATCH)),
        labels=work.validation.teacher_answers(),
        threads=work.threads,
    )
    budget = Budget(accuracy=work.options.accuracy_budget, agreement=VALIDATION_AGREEMENT)
    found = search(work.base, observed, name, trials, budget)
    details = _found_details(found, observed.images, len(work.validation))
    return found.model, {**details, "accuracy_budget": f"{budget.accuracy:g}"}


def _found_details(found: Found, calibrated: int, validated: int) -> dict[str, str]:
    tried = "; ".join(f"{method} {kept.agreement:.4f}" for method, kept in found.tried)
    return {
        "calibration": found.method,
        "calibration_images": str(calibrated),
        "calibrations_tried": tried,  # with their agreement
        "validation_images": str(validated),
        "validation_agreement": f"{found.kept.agreement:.4f}",
        "validation_accuracy_lost": f"{found.kept.accuracy_lost:.4f}",
        "within_budget": "yes" if found.within else "no",
        "nodes_in_float": ", ".join(found.taken_out),
    }


def write(work: Work, name: str, model: Any, started: float, details: Mapping[str, str]) -> Variant:
    """One graph as a file with the interface asked for."""
    options = work.options
    pixels = to_pixels(work.spec.preprocessing) if options.include_preprocessing else None
    finished = wrap(model, Interface(pixels=pixels, softmax=options.softmax, batch=options.fixed_batch))
    facts = _or_engine_error(lambda: write_model(finished, work.out / FILES[name], onnx_metadata(work.spec, options)))
    return Variant(
        name=name,
        path=FILES[name],
        target=TARGET_OF[name],
        format="onnx",
        precision=name.partition("-")[0],
        size=facts.size,
        sha256=facts.sha256,
        seconds=time.monotonic() - started,
        reproducible=True,
        details={
            "opset": str(facts.opset),
            "nodes": str(facts.nodes),
            "batch_norms": str(facts.batch_norms),
            "max_batch": str(options.fixed_batch or options.max_batch),
            "batch": "free" if options.fixed_batch is None else str(options.fixed_batch),
            "input": "pixels" if options.include_preprocessing else "tensor",
            "output": "probabilities" if options.softmax else "logits",
            **details,
        },
    )


def to_pixels(preprocessing: Preprocessing) -> Pixels:
    """A student's preprocessing as nodes of its graph."""
    return Pixels(
        scale=preprocessing.scale,
        mean=preprocessing.mean,
        std=preprocessing.std,
        reverse=preprocessing.channels == "BGR",
    )


def onnx_metadata(spec: StudentSpec, options: ExportOptions) -> dict[str, str]:
    """What a device needs to feed the network and to name its outputs."""
    pixels = f"uint8 [N, {spec.size}, {spec.size}, {spec.channels}] pixels"
    return {
        "punnet.labels": json.dumps(list(spec.class_names)),
        "punnet.preprocessing": json.dumps(to_json(spec.preprocessing), sort_keys=True),
        "punnet.student": spec.name,
        "punnet.input": pixels if options.include_preprocessing else "preprocessed",
        "punnet.output": "probabilities" if options.softmax else "logits",
    }


def _or_engine_error(work: Any) -> Any:
    try:
        return work()
    except ExportError as error:
        raise EngineError(error.code, error.message, error.remedy, **error.details) from error
