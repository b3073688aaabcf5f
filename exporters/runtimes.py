"""Runtimes beside ONNX Runtime and TensorRT that a student can be converted for.

Punnet's own are modules of this package; others are entry points of the group `punnet.exporters`, each a module or an
object with the verbs of `Exporter`.
"""

from __future__ import annotations

import importlib.metadata
from typing import cast

from exporters import executorch_pte, openvino_ir
from exporters.errors import ExportError
from exporters.runtime_files import Exporter

GROUP = "punnet.exporters"
OWN: dict[str, Exporter] = {"openvino": openvino_ir, "executorch": executorch_pte}


def runtime_names() -> tuple[str, ...]:
    """Runtimes that can be asked for, installed or not."""
    return tuple(dict.fromkeys((*OWN, *sorted(importlib.metadata.entry_points(group=GROUP).names))))


def exporter_of(name: str) -> Exporter:
    """The exporter of a runtime.

    Raises:
        ExportError: there is none of the name, or its entry point can't be loaded.
    """
    if name in OWN:
        return OWN[name]
    found = [point for point in importlib.metadata.entry_points(group=GROUP) if point.name == name]
    if len(found) != 1:
        known = ", ".join(runtime_names())
        raise ExportError(
            f"{len(found)} exporters are installed for the runtime {name!r}.", f"Choose from {known}.", runtime=name
        )
    try:
        return cast(Exporter, found[0].load())
    except (ImportError, AttributeError) as error:
        raise ExportError(
            f"The exporter {found[0].value} of the runtime {name!r} can't be loaded: {error}.",
            "Install the package that brings it again.",
            runtime=name,
        ) from error
