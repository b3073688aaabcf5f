"""Stage export: the trained student as ONNX, and as an engine for each target that needs one."""

from __future__ import annotations

from pathlib import Path

from exporters import rtx_engine
from exporters.errors import ExportError
from pu_engine.errors import EngineError
from pu_engine.progress import Progress
from pu_engine.types import ExportInputs, ExportOptions, Variant, Variants
from pu_engine.variants import FILES, write_variants

TARGETS = ("cpu", "rtx")
RTX_CAPABILITIES = ("SM86", "SM89", "SM120")  # RTX 30, 40 and 50; SM75 compiles no fp32 matrix product
RTX_NAME = "rtx-sm86-sm89-sm120"
MAX_BATCH_LIMIT = 1024


def run(inputs: ExportInputs, out: Path, progress: Progress) -> Variants:
    """Write `student.onnx` always, its other precisions, and engines; what can't be made is a warning.

    Raises:
        EngineError: REQUEST_INVALID for an unknown target or batch; EXPORT_FAILED where there is no ONNX.
    """
    options = inputs.export
    check_options(options)
    variants, warnings = write_variants(inputs, out, progress)
    if "rtx" in options.targets:
        try:
            variants.append(_rtx_variant(out, options))
        except ExportError as error:
            warnings.append(f"No engine for the target rtx: {error.message} {error.remedy}")
            progress.warn(warnings[-1])
    return Variants(variants=tuple(variants), warnings=tuple(warnings))


def check_options(options: ExportOptions) -> None:
    """Refuse targets, variants, batches and budgets that nothing can meet."""
    for what, asked, known in (("target", options.targets, TARGETS), ("variant", options.variants, tuple(FILES))):
        for name in asked:
            if name not in known:
                raise EngineError(
                    "REQUEST_INVALID",
                    f"There is no export {what} {name!r}.",
                    f"Choose from {', '.join(known)}.",
                    **{what: name},
                )
    for field, batch in (("max_batch", options.max_batch), ("batch", options.batch)):
        if batch is not None and not 1 <= batch <= MAX_BATCH_LIMIT:
            raise EngineError(
                "REQUEST_INVALID",
                f"export.{field} must be from 1 to {MAX_BATCH_LIMIT}, got {batch}.",
                f"Set export.{field} within its bounds.",
                **{field: batch},
            )
    if not 0.0 <= options.accuracy_budget <= 1.0:
        raise EngineError(
            "REQUEST_INVALID",
            f"export.accuracy_budget must be from 0 to 1, got {options.accuracy_budget:g}.",
            "Give the share of right answers that int8 may lose, for instance 0.006.",
            accuracy_budget=options.accuracy_budget,
        )


def _rtx_variant(out: Path, options: ExportOptions) -> Variant:
    max_batch = options.max_batch
    if options.batch is not None:
        raise ExportError(f"The ONNX file has the fixed batch {options.batch}.", "Leave the batch free for an engine.")
    lacking = rtx_engine.missing()
    if lacking:
        raise ExportError(f"{lacking}.", "The ONNX file is not affected.")
    name = f"student.{RTX_NAME}.engine"
    facts = rtx_engine.build_engine(out / FILES["fp32"], out / name, capabilities=RTX_CAPABILITIES, max_batch=max_batch)
    return Variant(
        name=RTX_NAME,
        path=name,
        target="rtx",
        format="tensorrt_rtx",
        precision="fp32",
        size=facts.size,
        sha256=facts.sha256,
        seconds=facts.seconds,
        reproducible=False,
        details={
            "capabilities": ",".join(facts.capabilities),
            "profile": "/".join(str(batch) for batch in facts.profile),
            "tensorrt_rtx": facts.version,
            "max_batch": str(max_batch),
        },
    )
