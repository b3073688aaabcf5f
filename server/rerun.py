"""A job once more with other options: the request of `from_job` stands for what the new one leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from punnet.errors import PunnetError
from punnet.v1 import compression_pb2
from server.job_spec import Spec
from server.request_check import violation

OWN_OPTIONS = frozenset({"labels", "temperature"})  # of the loss: `label_weight` and `temperature`
OPTION_GROUPS = ("preprocessing", "student", "selection", "distillation", "export")


def fill_material(request: compression_pb2.CompressRequest, earlier: Mapping[str, Any]) -> None:
    """Name the earlier job's teacher, images, pool and seed in the request, where it names none itself.

    Raises:
        PunnetError: REQUEST_INVALID where the earlier job had no teacher.
    """
    if "teacher" not in earlier or "images" not in earlier:
        raise violation("from_job", "a compression, validation, plan or inspection", request.from_job)
    teacher = request.teacher
    if not teacher.sha256:
        teacher.sha256 = earlier["teacher"]["sha256"]
        for location, file in earlier.get("external_data", {}).items():
            teacher.external_data[location] = file["sha256"]
        teacher.display_name = teacher.display_name or earlier.get("display_name", "")
        if not teacher.class_names:
            teacher.class_names.extend(earlier.get("class_names", ()))
        if not teacher.taps:
            teacher.taps.extend(earlier.get("taps", ()))
    if request.images.WhichOneof("source") is None:
        _fill_images(request, earlier["images"])
    request.pool = request.pool or earlier.get("pool", {}).get("name", "")
    request.seed = request.seed or earlier.get("seed", 0)


def merge_options(spec: Spec, earlier: Mapping[str, Any]) -> Spec:
    """The spec with the earlier job's options beneath its own, group by group."""
    groups = {name: {**earlier.get(name, {}), **spec.get(name, {})} for name in OPTION_GROUPS}
    losses = [group["distillation"]["loss"] for group in (earlier, spec) if "loss" in group.get("distillation", {})]
    if losses:
        groups["distillation"]["loss"] = _merge_loss(*losses)
    return spec | {name: group for name, group in groups.items() if group}


def _merge_loss(earlier: Mapping[str, float], stated: Mapping[str, float] | None = None) -> dict[str, float]:
    """Parts that are stated replace the earlier ones all; the labels' weight and the temperature are options apart."""
    parts = [{name: loss[name] for name in loss.keys() - OWN_OPTIONS} for loss in (earlier, stated or {})]
    own = {name: value for name, value in {**earlier, **(stated or {})}.items() if name in OWN_OPTIONS}
    return {**(parts[1] or parts[0]), **own}


def not_found(job_id: str) -> PunnetError:
    """The error of a `from_job` that is not there."""
    return violation("from_job", "the id of a job that is there", job_id)


def _fill_images(request: compression_pb2.CompressRequest, images: Mapping[str, Any]) -> None:
    if "tar" in images:
        request.images.tar.sha256 = images["tar"]["sha256"]
        return
    for row in images["files"]:
        request.images.blobs.images.add(label=row["label"], sha256=row["image"]["sha256"])
