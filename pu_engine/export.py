"""Stage export: the trained student as ONNX."""

from __future__ import annotations

import json
from pathlib import Path

from exporters.errors import ExportError
from exporters.targets import targets
from exporters.torch_to_onnx import export_onnx
from pu_engine.errors import EngineError
from pu_engine.jsonform import to_json
from pu_engine.progress import Progress
from pu_engine.student_files import load_student
from pu_engine.types import ExportInputs, ExportOptions, StudentSpec, Variant, Variants

ONNX = "student.onnx"
MAX_BATCH_LIMIT = 1024


def run(inputs: ExportInputs, out: Path, progress: Progress) -> Variants:
    """Write `student.onnx`.

    Raises:
        EngineError: REQUEST_INVALID for an unknown target or batch; EXPORT_FAILED where there is no ONNX.
    """
    options = inputs.export
    check_options(options)
    progress.update(0, 1, "variant")
    variants = (_onnx_variant(Path(inputs.distillation.path), out, options.max_batch),)
    progress.update(1, 1, "variant")
    return Variants(variants=variants)


def check_options(options: ExportOptions) -> None:
    """Refuse targets and batches that no variant can meet."""
    unknown = [target for target in options.targets if target not in targets()]
    if unknown:
        raise EngineError(
            "REQUEST_INVALID",
            f"There is no export target {unknown[0]!r}.",
            f"Choose from {', '.join(targets())}.",
            target=unknown[0],
        )
    if not 1 <= options.max_batch <= MAX_BATCH_LIMIT:
        raise EngineError(
            "REQUEST_INVALID",
            f"export.max_batch must be from 1 to {MAX_BATCH_LIMIT}, got {options.max_batch}.",
            "Set export.max_batch within its bounds.",
            max_batch=options.max_batch,
        )


def onnx_metadata(spec: StudentSpec) -> dict[str, str]:
    """What a device needs to feed the network and to name its outputs."""
    return {
        "punnet.labels": json.dumps(list(spec.class_names)),
        "punnet.preprocessing": json.dumps(to_json(spec.preprocessing), sort_keys=True),
        "punnet.student": spec.name,
    }


def _onnx_variant(student: Path, out: Path, max_batch: int) -> Variant:
    spec, module = load_student(student)
    try:
        facts = export_onnx(module, out / ONNX, size=spec.size, channels=spec.channels, metadata=onnx_metadata(spec))
    except ExportError as error:
        raise EngineError(error.code, error.message, error.remedy, **error.details) from error
    return Variant(
        name="fp32",
        path=ONNX,
        target="cpu",
        format="onnx",
        precision="fp32",
        size=facts.size,
        sha256=facts.sha256,
        seconds=facts.seconds,
        reproducible=True,
        details={
            "opset": str(facts.opset),
            "nodes": str(facts.nodes),
            "batch_norms": str(facts.batch_norms),
            "max_batch": str(max_batch),
        },
    )
