"""The student's files for further runtimes, as variants beside the ONNX ones."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from exporters.errors import ExportError
from exporters.interface import Interface
from exporters.runtime_files import Converted, Run, Source
from exporters.runtimes import exporter_of
from exporters.torch_to_onnx import merge_branches
from pu_engine.results import file_sha256
from pu_engine.runtime.sessions import open_session
from pu_engine.types import ExportOptions, StudentSpec, Variant
from pu_engine.variants.export_types import Companion, NotMade

INPUT = "input"
KEPT_DETAILS = ("accuracy_budget", "within_budget", "validation_agreement", "validation_accuracy_lost")


def convert(
    name: str, module: nn.Module, *, spec: StudentSpec, options: ExportOptions, interface: Interface,
    made: Sequence[Variant], out: Path,
) -> list[Variant] | NotMade:  # fmt: skip
    """A runtime's files of a student, or why there are none.

    Args:
        module: the torch student.
        made: the ONNX files in `out`.
    """
    started = time.monotonic()
    try:
        exporter = exporter_of(name)
        requirement = exporter.missing()
        if requirement:
            return NotMade(name=name, reason=f"the runtime is not installed here; install {requirement}.")
        source = Source(
            module=merge_branches(module).eval(),
            size=spec.size,
            channels=spec.channels,
            interface=interface,
            onnx={v.name: out / v.path for v in made if v.format == "onnx"},
            max_batch=options.max_batch,
        )
        files = exporter.convert(source, out)
    except ExportError as error:
        return NotMade(name=name, reason=f"{error.message} {error.remedy}")
    by_name = {v.name: v for v in made}
    seconds = (time.monotonic() - started) / max(1, len(files))
    return [_variant(name, file, by_name, seconds) for file in files]


def _variant(runtime: str, file: Converted, made: Mapping[str, Variant], seconds: float) -> Variant:
    """The file's variant; what it was asked to take and to give is that of every file of the export."""
    common = {key: made["fp32"].details[key] for key in ("max_batch", "batch", "input", "output")}
    source = made[file.made_of].details if file.made_of in made else {}
    kept = {key: source[key] for key in KEPT_DETAILS if key in source}
    beside = tuple(Companion(path=p.name, size=p.stat().st_size, sha256=file_sha256(p)) for p in file.beside)
    return Variant(
        name=file.name,
        path=file.path.name,
        target=file.target,
        format=runtime,
        precision=file.precision,
        size=file.path.stat().st_size + sum(companion.size for companion in beside),
        sha256=file_sha256(file.path),
        seconds=seconds,
        reproducible=True,
        details={**common, **kept, "made_of": file.made_of, **file.details},
        beside=beside,
    )


def open_run(path: Path, form: str, threads: int) -> Run:
    """A file of a format, ready to run on the CPU: `onnx`, ONNX Runtime's own, or that of a further runtime.

    Raises:
        ExportError: nothing here runs the format.
    """
    if form != "onnx":
        return exporter_of(form).load(path, threads)
    session = open_session(path, threads=threads)
    return lambda inputs: session.run(None, {INPUT: inputs})[0]
