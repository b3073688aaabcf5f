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
from exporters.inference import open_model
from exporters.interface import Interface, Pixels, wrap
from exporters.onnx_file import write_model
from exporters.targets import targets
from exporters.torch_to_onnx import HOP, to_onnx
from pu_engine.errors import EngineError
from pu_engine.jsonform import to_json
from pu_engine.progress import Progress
from pu_engine.student.files import load_student
from pu_engine.types import ExportInputs, ExportOptions, Preprocessing, StudentSpec, Variant
from pu_engine.variants.export_types import NotMade
from pu_engine.variants.int8_task import Int8Task
from pu_engine.variants.int8_variants import int8
from pu_engine.variants.runtime_variants import convert
from pu_engine.variants.sample_images import calibration_and_validation

FILES = {  # variant -> file; fp32 is always made, for the others are verified against it
    "fp32": "student.onnx",
    "fp16": "student-fp16.onnx",
    "int8-cpu": "student-int8-cpu.onnx",
    "int8-trt": "student-int8-trt.onnx",
}
TARGET_OF = {"fp32": "cpu", "fp16": "rtx", "int8-cpu": "cpu", "int8-trt": "rtx"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """What the files are made of and where they go."""

    spec: StudentSpec
    base: Any  # the fp32 graph: float32 in, logits out, batch free
    options: ExportOptions
    threads: int
    out: Path


def wanted_variants(options: ExportOptions) -> tuple[str, ...]:
    """Names of the ONNX files to make, in the order of FILES."""
    known = targets()
    asked = options.variants or [name for target in options.targets for name in known[target].variants]
    return tuple(name for name in FILES if name == "fp32" or name in asked)


def write_variants(inputs: ExportInputs, out: Path, progress: Progress) -> tuple[list[Variant], list[NotMade]]:
    """Write the ONNX files and those of the runtimes asked for; what could not be made comes with why.

    Raises:
        EngineError: EXPORT_FAILED where there is no fp32 file; it names the hop.
    """
    wanted = wanted_variants(inputs.export)
    spec, module = load_student(Path(inputs.distillation.path))
    started = time.monotonic()
    base = fp32_graph(spec, module)
    calibration, validation = calibration_and_validation(Path(inputs.gathering.path), spec.preprocessing)
    work = Work(spec=spec, base=base, options=inputs.export, threads=inputs.threads, out=out)
    variants, not_made = [write(work, "fp32", base, started, {})], list[NotMade]()
    total = len(wanted) + len(inputs.export.runtimes)
    progress.update(1, total, "variant")
    if len(wanted) > 1:
        observed = _or_engine_error(lambda: observe(base, calibration.batches, threads=inputs.threads))
        task = Int8Task(
            inputs=inputs, spec=spec, base=base, observed=observed, calibration=calibration, validation=validation,
            scratch=out, progress=progress,
        )  # fmt: skip
    for done, name in enumerate(wanted[1:], start=2):
        started = time.monotonic()
        try:
            model, details = half(work, observed) if name == "fp16" else int8(task, name)
            variants.append(write(work, name, model, started, details))
        except ExportError as error:
            not_made.append(NotMade(name=name, reason=f"{error.message} {error.remedy}"))
        progress.update(done, total, "variant")
    files = tuple(variants)
    for done, runtime in enumerate(inputs.export.runtimes, start=len(wanted) + 1):
        converted = convert(
            runtime, module, spec=spec, options=inputs.export, interface=interface_of(work), made=files, out=out
        )
        if isinstance(converted, NotMade):
            not_made.append(converted)
        else:
            variants += converted
        progress.update(done, total, "variant")
    return variants, not_made


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


def write(work: Work, name: str, model: Any, started: float, details: Mapping[str, str]) -> Variant:
    """One graph as a file with the interface asked for."""
    options = work.options
    finished = wrap(model, interface_of(work))
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
        reproducible="search_ended" not in details,  # time alone ended it
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


def interface_of(work: Work) -> Interface:
    """What every file takes and gives."""
    options = work.options
    pixels = to_pixels(work.spec.preprocessing) if options.include_preprocessing else None
    return Interface(pixels=pixels, softmax=options.softmax, batch=options.fixed_batch)


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
