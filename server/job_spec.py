"""A request as a job's spec: the JSON that `pu_engine.pipeline` hands out to the stages.

As stored, a spec names files by digest only (`{"sha256": ...}`) and the pool by name and digest; `located` adds the
paths. Fields that the request leaves unset are left out: the engine's dataclasses hold the defaults.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from punnet.v1 import catalogue_pb2, compression_pb2, options_pb2, pool_pb2

LAYOUTS = {options_pb2.LAYOUT_NCHW: "NCHW", options_pb2.LAYOUT_NHWC: "NHWC", options_pb2.LAYOUT_FLAT: "flat"}
CHANNELS = {
    options_pb2.CHANNEL_ORDER_RGB: "RGB",
    options_pb2.CHANNEL_ORDER_BGR: "BGR",
    options_pb2.CHANNEL_ORDER_GRAY: "GRAY",
}
FITS = {options_pb2.FIT_STRETCH: "stretch", options_pb2.FIT_CROP: "crop"}
SCORES = {
    options_pb2.SCORE_AUTO: "auto",
    options_pb2.SCORE_E2: "e2",
    options_pb2.SCORE_PU: "pu",
    options_pb2.SCORE_ENERGY: "energy",
    options_pb2.SCORE_RELATIVE_MAHALANOBIS: "relative_mahalanobis",
    options_pb2.SCORE_CONFIDENCE: "confidence",
    options_pb2.SCORE_RANDOM: "random",
    options_pb2.SCORE_CONTENT: "content",
    options_pb2.SCORE_PAPER: "paper",
}
RULES = {
    options_pb2.SELECTION_RULE_BALANCED: "balanced",
    options_pb2.SELECTION_RULE_TOP: "top",
    options_pb2.SELECTION_RULE_THRESHOLD: "threshold",
}
WEIGHTS = {
    options_pb2.CLASS_WEIGHTS_NONE: "none",
    options_pb2.CLASS_WEIGHTS_PAPER: "paper",
    options_pb2.CLASS_WEIGHTS_CHI2: "chi2",
    options_pb2.CLASS_WEIGHTS_KL: "kl",
    options_pb2.CLASS_WEIGHTS_TWO_SIDED: "two_sided",
}
EFFORTS = {
    options_pb2.EFFORT_QUICK: "quick",
    options_pb2.EFFORT_NORMAL: "normal",
    options_pb2.EFFORT_PATIENT: "patient",
}
DRAWS = {
    options_pb2.DRAWS_UNIFORM: "uniform",
    options_pb2.DRAWS_WEIGHTED: "weighted",
    options_pb2.DRAWS_BALANCED: "balanced",
}
TARGETS = {
    options_pb2.TEACHER_TARGETS_AUTO: "auto",
    options_pb2.TEACHER_TARGETS_CACHED: "cached",
    options_pb2.TEACHER_TARGETS_VIEWS: "views",
    options_pb2.TEACHER_TARGETS_LIVE: "live",
}
PRECISIONS = {
    options_pb2.PRECISION_AUTO: "auto",
    options_pb2.PRECISION_FP32: "fp32",
    options_pb2.PRECISION_BF16: "bf16",
    options_pb2.PRECISION_FP16: "fp16",
}
PARITY_IMAGES = {
    options_pb2.PARITY_IMAGES_POOL: "pool",
    options_pb2.PARITY_IMAGES_GENERATED: "generated",
    options_pb2.PARITY_IMAGES_OWN: "own",
}

SHRINK_QUALITY = 90

Spec = dict[str, Any]


def compression_spec(request: compression_pb2.CompressRequest, pool: Mapping[str, str] | None) -> Spec:
    """A compression, a validation or a plan; `pool` is a reference of `pool_table`."""
    student, selection, export = request.student, request.selection, request.export
    groups = {
        "student": _set_fields(
            name=student.name,
            size=student.size,
            max_parameters=student.max_parameters,
            max_macs=student.max_macs,
            max_latency_ms=student.max_latency_ms,
            max_bytes=student.max_bytes,
            weights=_file(student.weights_sha256) if student.weights_sha256 else None,
        ),
        "selection": _set_fields(
            score=SCORES.get(selection.score),
            rule=RULES.get(selection.rule),
            count=selection.count,
            threshold=selection.threshold,
            prior=selection.prior,
            class_floors=dict(sorted(selection.class_floors.items())),
            class_caps=dict(sorted(selection.class_caps.items())),
            keep_look_alikes=selection.keep_look_alikes,
            excluded=_file(selection.excluded_sha256) if selection.excluded_sha256 else None,
        ),
        "distillation": _distillation(request.distillation),
        "export": _set_fields(
            targets=list(export.targets),
            max_batch=export.max_batch,
            parity_images=PARITY_IMAGES.get(export.parity_images),
            variants=list(export.variants),
            include_preprocessing=export.include_preprocessing,
            softmax=export.softmax,
            fixed_batch=export.fixed_batch,
            runtimes=list(export.runtimes),
        )
        # Zero is a value here: int8 may lose nothing, or is not trained for.
        | {
            field: getattr(export, field)
            for field in ("accuracy_budget", "quantisation_training_steps")
            if export.HasField(field)
        },
    }
    if selection.rule == options_pb2.SELECTION_RULE_THRESHOLD:
        groups["selection"]["threshold"] = selection.threshold
    if pool is not None:
        groups["pool"] = dict(pool)
    return inspection_spec(request) | {name: group for name, group in groups.items() if group}


def inspection_spec(request: compression_pb2.CompressRequest | catalogue_pb2.InspectTeacherRequest) -> Spec:
    """What intake reads."""
    teacher, stated = request.teacher, request.preprocessing
    preprocessing = _set_fields(
        layout=LAYOUTS.get(stated.layout),
        channels=CHANNELS.get(stated.channels),
        scale=stated.scale,
        mean=list(stated.mean),
        std=list(stated.std),
        height=stated.height,
        width=stated.width,
        fit=FITS.get(stated.fit),
    )
    spec = _set_fields(
        external_data={name: _file(sha256) for name, sha256 in sorted(teacher.external_data.items())},
        display_name=teacher.display_name,
        class_names=list(teacher.class_names),
        taps=list(teacher.taps),
        preprocessing=preprocessing,
    )
    return spec | {"teacher": _file(teacher.sha256), "images": _images(request.images), "seed": request.seed}


def ingest_spec(request: pool_pb2.CreatePoolRequest) -> Spec:
    """What ingest reads to make a pool."""
    spec = {"name": request.name, "tars": [_file(sha256) for sha256 in request.tar_sha256]}
    if not request.HasField("shrink"):
        return spec
    quality = request.shrink.quality or SHRINK_QUALITY
    return spec | {"shrink": {"short_side": request.shrink.short_side, "quality": quality}}


def append_spec(request: pool_pb2.AppendPoolRequest, pool: Mapping[str, str]) -> Spec:
    """What ingest reads to append to a pool."""
    return {
        "name": request.name,
        "tars": [_file(sha256) for sha256 in request.tar_sha256],
        "pool": dict(pool),
    }


def pool_spec(pool: Mapping[str, str], **more: str) -> Spec:
    """What a job that only looks at a pool reads."""
    return {"pool": dict(pool), **more}


def digests_of(spec: Mapping[str, Any]) -> set[str]:
    """Every blob that a spec names."""
    found: set[str] = set()
    for value in spec.values():
        _collect(value, found)
    return found


def located(spec: Mapping[str, Any], blobs: Path, pools: Path) -> Spec:
    """The spec with the path of each file and of the pool, as the stages read it."""
    placed = {name: _located(value, blobs.resolve()) for name, value in spec.items()}
    if "pool" in spec:
        pool = spec["pool"]
        version = pools / pool["name"] / pool["sha256"]
        placed["pool"] = {"path": str(version.resolve()), "sha256": pool["sha256"]}
    return placed


def readable_paths(inputs: Mapping[str, Any], blobs: Path) -> list[Path]:
    """What a stage must be able to read: folders that its inputs name, and the job's blobs as one folder."""
    paths: set[Path] = set()
    _collect_paths(inputs, paths)
    folder = blobs.resolve()
    return sorted({folder if path.is_relative_to(folder) else path for path in paths})


def _distillation(options: options_pb2.DistillationOptions) -> Spec:
    parts: Spec = {"kl": 0.0, **options.loss} if options.loss else {}
    # Zero is a value here: no cross-entropy on the labelled images.
    labels = {"labels": options.label_weight} if options.HasField("label_weight") else {}
    return _set_fields(
        steps=options.steps,
        effort=EFFORTS.get(options.effort),
        minutes=options.minutes,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        loss=parts | labels | _set_fields(temperature=options.temperature),
        labelled_share=options.labelled_share,
        draws=DRAWS.get(options.draws),
        targets=TARGETS.get(options.targets),
        views=options.views,
        mixup=options.mixup,
        cutmix=options.cutmix,
        class_weights=WEIGHTS.get(options.class_weights),
        radius=options.radius,
        clip_norm=options.clip_norm,
        average_decay=options.average_decay,
        precision=PRECISIONS.get(options.precision),
        compiled=options.compiled,
    )


def _set_fields(**fields: Any) -> Spec:
    return {name: value for name, value in fields.items() if value}


def _file(sha256: str) -> Spec:
    return {"sha256": sha256}


def _images(images: options_pb2.LabelledImages) -> Spec:
    if images.WhichOneof("source") == "tar":
        return {"tar": _file(images.tar.sha256)}
    if images.WhichOneof("source") == "inline":
        rows = [(image.label, hashlib.sha256(image.data).hexdigest()) for image in images.inline.images]
    else:
        rows = [(image.label, image.sha256) for image in images.blobs.images]
    return {"files": [{"label": label, "image": _file(sha256)} for label, sha256 in rows]}


def _is_file(value: Any) -> bool:
    return isinstance(value, Mapping) and set(value) == {"sha256"} and isinstance(value["sha256"], str)


def _collect(value: Any, found: set[str]) -> None:
    if _is_file(value):
        found.add(value["sha256"])
    elif isinstance(value, Mapping):
        for inner in value.values():
            _collect(inner, found)
    elif isinstance(value, list):
        for inner in value:
            _collect(inner, found)


def _located(value: Any, blobs: Path) -> Any:
    if _is_file(value):
        return {"path": str(blobs / value["sha256"]), "sha256": value["sha256"]}
    if isinstance(value, Mapping):
        return {name: _located(inner, blobs) for name, inner in value.items()}
    if isinstance(value, list):
        return [_located(inner, blobs) for inner in value]
    return value


def _collect_paths(value: Any, paths: set[Path]) -> None:
    if isinstance(value, Mapping):
        if isinstance(value.get("path"), str) and isinstance(value.get("sha256"), str):
            paths.add(Path(value["path"]))
        for inner in value.values():
            _collect_paths(inner, paths)
    elif isinstance(value, list):
        for inner in value:
            _collect_paths(inner, paths)
