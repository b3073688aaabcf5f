"""Every field of a request against the ranges of the contract, before anything is stored or started.

Each violation is one message that names the field, the limit and the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pu_engine.pipeline import export_runtimes, export_targets
from punnet.errors import PunnetError, make_error
from punnet.v1 import catalogue_pb2, compression_pb2, options_pb2, pool_pb2
from server.capabilities import INLINE_BYTES, TEACHER_BYTES

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
POOL_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
SHA256 = re.compile(r"[0-9a-f]{64}")
SEED_LIMIT = 2**31 - 1
LABEL_CHARACTERS = 200
NAME_CHARACTERS = 200
CLASS_NAMES = 100_000
TAPS = 16
TENSOR_CHARACTERS = 512
EXTERNAL_FILES = 1000
LOCATION_CHARACTERS = 512
IMAGES = 110_000
INLINE_IMAGES = 1000  # each becomes a file
TARS = 10_000
SHORT_SIDES = (8, 4096)
CHANNELS = (1, 3)
LEAST_CLASSES = 2
BATCH_LIMIT = 4096
PICKS = 2**62
VARIANTS = ("fp32", "fp16", "int8-cpu", "int8-trt")
LOSS_PARTS = ("kl", "dkd", "dist", "standardised", "hints", "noisy_labels")
SHOWN_CHARACTERS = 80


def check_compression(request: compression_pb2.CompressRequest, *, pool_needed: bool) -> None:
    """Raises PunnetError for the first field that is out of range."""
    check_inspection(request)
    if request.pool or pool_needed:
        check_pool_name("pool", request.pool)
    _student(request.student)
    _selection(request.selection)
    _distillation(request.distillation)
    _export(request.export)


def check_inspection(request: compression_pb2.CompressRequest | catalogue_pb2.InspectTeacherRequest) -> None:
    """Raises PunnetError for the first field of what intake reads that is out of range."""
    check_request_id(request.request_id)
    _teacher(request.teacher)
    _images(request.images)
    _preprocessing(request.preprocessing)
    if not 0 <= request.seed <= SEED_LIMIT:
        raise violation("seed", f"0 to {SEED_LIMIT}", request.seed)


def check_ingest(request: pool_pb2.CreatePoolRequest | pool_pb2.AppendPoolRequest) -> None:
    """Raises PunnetError for the first field that is out of range."""
    check_pool_job(request)
    if not 1 <= len(request.tar_sha256) <= TARS:
        raise violation("tar_sha256", f"1 to {TARS} digests", len(request.tar_sha256))
    for sha256 in request.tar_sha256:
        check_digest("tar_sha256", sha256)


def check_shrink(request: pool_pb2.CreatePoolRequest) -> None:
    """Raises PunnetError where images are to be stored smaller in a way that is out of range."""
    if request.HasField("shrink"):
        low, high = SHORT_SIDES
        if not low <= request.shrink.short_side <= high:
            raise violation("shrink.short_side", f"{low} to {high} pixels", request.shrink.short_side)
        _whole("shrink.quality", request.shrink.quality, 1, 100)


def check_pool_job(
    request: pool_pb2.CreatePoolRequest
    | pool_pb2.AppendPoolRequest
    | pool_pb2.VerifyPoolRequest
    | pool_pb2.DescribePoolRequest,
) -> None:
    """Raises PunnetError for a request id or a pool's name that is out of range."""
    check_request_id(request.request_id)
    check_pool_name("name", request.name)


def check_request_id(request_id: str) -> None:
    """Empty, or 1 to 64 plain characters."""
    if request_id and not REQUEST_ID.fullmatch(request_id):
        raise violation("request_id", "1 to 64 characters of [A-Za-z0-9_-]", request_id)


def check_pool_name(field: str, name: str) -> None:
    """1 to 63 characters that are safe as a folder's name."""
    if not POOL_NAME.fullmatch(name):
        raise violation(field, '1 to 63 characters of [a-z0-9-], not starting or ending with "-"', name)


def check_digest(field: str, sha256: str) -> None:
    """64 lower-case hexadecimal characters."""
    if not SHA256.fullmatch(sha256):
        raise violation(field, "a sha256 of 64 lower-case hexadecimal characters", sha256)


def check_target(field: str, target: str, *, engines: bool = False) -> None:
    """A name of the list of targets; with `engines` one whose devices run engines."""
    known = {name: row for name, row in export_targets().items() if row.get("capabilities") or not engines}
    if target not in known:
        raise violation(field, f"one of {', '.join(known)}", target)


def check_blob_sizes(teacher: options_pb2.Teacher, sizes: Mapping[str, int]) -> None:
    """The teacher's files together; raises PunnetError MODEL_TOO_LARGE."""
    total = sum(sizes[sha256] for sha256 in {teacher.sha256, *teacher.external_data.values()})
    if total > TEACHER_BYTES:
        raise make_error(
            "MODEL_TOO_LARGE",
            f"The teacher has {total} bytes; the limit is {TEACHER_BYTES}.",
            "Export it without training state, or ask the operator to raise the limit.",
            {"limit": str(TEACHER_BYTES), "value": str(total)},
        )


def page_size(value: int, *, default: int, limit: int) -> int:
    """The page size asked for; raises PunnetError where it is out of range."""
    if not 0 <= value <= limit:
        raise violation("page_size", f"1 to {limit}, or 0 for {default}", value)
    return value or default


def violation(field: str, limit: str, value: object) -> PunnetError:
    """REQUEST_INVALID: which field, what it must be, what came."""
    shown = repr(value)[:SHOWN_CHARACTERS]
    return make_error(
        "REQUEST_INVALID",
        f"Field {field}: must be {limit}; got {shown}.",
        "Correct the field, then send the request again.",
        {"field": field, "limit": limit, "value": shown},
    )


def _teacher(teacher: options_pb2.Teacher) -> None:
    check_digest("teacher.sha256", teacher.sha256)
    if len(teacher.external_data) > EXTERNAL_FILES:
        raise violation("teacher.external_data", f"at most {EXTERNAL_FILES} files", len(teacher.external_data))
    for location, sha256 in teacher.external_data.items():
        _text("teacher.external_data", location, LOCATION_CHARACTERS)
        check_digest(f"teacher.external_data[{location!r}]", sha256)
    if teacher.display_name:
        _text("teacher.display_name", teacher.display_name, NAME_CHARACTERS)
    if len(teacher.class_names) > CLASS_NAMES:
        raise violation("teacher.class_names", f"at most {CLASS_NAMES} names", len(teacher.class_names))
    for name in teacher.class_names:
        _text("teacher.class_names", name, LABEL_CHARACTERS)
    if len(set(teacher.class_names)) != len(teacher.class_names):
        raise violation("teacher.class_names", "names that all differ", "a name twice")
    if len(teacher.taps) > TAPS:
        raise violation("teacher.taps", f"at most {TAPS} tensors", len(teacher.taps))
    for name in teacher.taps:
        _text("teacher.taps", name, TENSOR_CHARACTERS)
    if len(set(teacher.taps)) != len(teacher.taps):
        raise violation("teacher.taps", "names that all differ", "a name twice")


def _images(images: options_pb2.LabelledImages) -> None:
    source = images.WhichOneof("source")
    if source == "tar":
        check_digest("images.tar.sha256", images.tar.sha256)
        return
    rows = images.inline.images if source == "inline" else images.blobs.images
    if not rows:
        raise make_error(
            "IMAGES_MISSING",
            "Field images: there are no labelled images.",
            "Give 20 to 100 labelled images a class, of 2 classes at least.",
        )
    if len(rows) > IMAGES:
        raise violation("images", f"at most {IMAGES} images", len(rows))
    for row in rows:
        _text(f"images.{source}.images.label", row.label, LABEL_CHARACTERS)
    _images_content(images, source)
    labels = {row.label for row in rows}
    if len(labels) < LEAST_CLASSES:
        raise make_error(
            "IMAGES_ONE_CLASS",
            f"Field images: all {len(rows)} images are of one class ({next(iter(labels))[:SHOWN_CHARACTERS]!r}); "
            f"{LEAST_CLASSES} are needed.",
            "Add images of another class.",
            {"classes": "1", "limit": str(LEAST_CLASSES)},
        )


def _images_content(images: options_pb2.LabelledImages, source: str | None) -> None:
    if source == "blobs":
        for row in images.blobs.images:
            check_digest("images.blobs.images.sha256", row.sha256)
        return
    if any(not row.data for row in images.inline.images):
        raise violation("images.inline.images.data", "JPEG or PNG bytes", "no bytes")
    if len(images.inline.images) > INLINE_IMAGES:
        limit = f"at most {INLINE_IMAGES} images; upload them as blobs or as one tar"
        raise violation("images.inline.images", limit, len(images.inline.images))
    total = sum(len(row.data) for row in images.inline.images)
    if total > INLINE_BYTES:
        raise violation("images.inline", f"at most {INLINE_BYTES} bytes together; upload them as blobs", total)


def _preprocessing(stated: options_pb2.Preprocessing) -> None:
    _known("preprocessing.layout", options_pb2.Layout, stated.layout)
    _known("preprocessing.channels", options_pb2.ChannelOrder, stated.channels)
    _known("preprocessing.fit", options_pb2.Fit, stated.fit)
    _number("preprocessing.scale", stated.scale, least=0.0)
    _whole("preprocessing.height", stated.height, 4, 4096)
    _whole("preprocessing.width", stated.width, 4, 4096)
    for field, values in (("mean", stated.mean), ("std", stated.std)):
        if values and len(values) not in CHANNELS:
            raise violation(f"preprocessing.{field}", "one value a channel, 1 or 3", len(values))
        for value in values:
            _finite(f"preprocessing.{field}", value)
    if any(value <= 0 for value in stated.std):
        raise violation("preprocessing.std", "greater than 0", min(stated.std))
    given = {"scale": bool(stated.scale), "mean": bool(stated.mean), "std": bool(stated.std)}
    if any((given["mean"], given["std"])) and not all(given.values()):
        missing = ", ".join(name for name, there in given.items() if not there)
        raise violation("preprocessing", "mean, std and scale given together", f"no {missing}")
    if len(stated.mean) != len(stated.std):
        raise violation("preprocessing.std", f"as many values as mean, {len(stated.mean)}", len(stated.std))


def _student(student: options_pb2.StudentOptions) -> None:
    if student.name:
        _text("student.name", student.name, NAME_CHARACTERS)
    _whole("student.size", student.size, 8, 1024)
    _whole("student.max_parameters", student.max_parameters, 1, 2**62)
    _whole("student.max_macs", student.max_macs, 1, 2**62)
    _number("student.max_latency_ms", student.max_latency_ms, least=0.0)
    _whole("student.max_bytes", student.max_bytes, 1, 2**62)
    if student.weights_sha256:
        check_digest("student.weights_sha256", student.weights_sha256)


def _selection(selection: options_pb2.SelectionOptions) -> None:
    _known("selection.score", options_pb2.Score, selection.score)
    _known("selection.rule", options_pb2.SelectionRule, selection.rule)
    _whole("selection.count", selection.count, 1, PICKS)
    _number("selection.threshold", selection.threshold, least=0.0, most=1.0)
    _number("selection.prior", selection.prior, least=0.0, below=1.0)
    _class_counts("selection.class_floors", selection.class_floors)
    _class_counts("selection.class_caps", selection.class_caps)
    if selection.excluded_sha256:
        check_digest("selection.excluded_sha256", selection.excluded_sha256)


def _class_counts(field: str, counts: Mapping[str, int]) -> None:
    if len(counts) > CLASS_NAMES:
        raise violation(field, f"at most {CLASS_NAMES} classes", len(counts))
    for name, count in counts.items():
        _text(field, name, LABEL_CHARACTERS)
        if not 0 <= count <= PICKS:
            raise violation(f"{field}[{name!r}]", f"0 to {PICKS} images", count)


def _distillation(options: options_pb2.DistillationOptions) -> None:
    _whole("distillation.steps", options.steps, 1, 10_000_000)
    _whole("distillation.batch_size", options.batch_size, 8, BATCH_LIMIT)
    for field in ("learning_rate", "temperature", "radius", "label_weight", "minutes", "mixup", "cutmix", "clip_norm"):
        _number(f"distillation.{field}", getattr(options, field), least=0.0)
    _number("distillation.labelled_share", options.labelled_share, least=0.0, most=1.0)
    _number("distillation.average_decay", options.average_decay, least=0.0, below=1.0)
    _whole("distillation.views", options.views, 1, 64)
    _known("distillation.class_weights", options_pb2.ClassWeights, options.class_weights)
    _known("distillation.effort", options_pb2.Effort, options.effort)
    _known("distillation.draws", options_pb2.Draws, options.draws)
    _known("distillation.targets", options_pb2.TeacherTargets, options.targets)
    _known("distillation.precision", options_pb2.Precision, options.precision)
    for name, weight in options.loss.items():
        if name not in LOSS_PARTS:
            raise violation("distillation.loss", f"weights of {', '.join(LOSS_PARTS)}", name)
        _number(f"distillation.loss[{name!r}]", weight, least=0.0)
    if options.loss and not any(options.loss.values()) and not options.label_weight:
        raise violation("distillation.loss", "above 0 for at least one part", dict(options.loss))


def _export(options: options_pb2.ExportOptions) -> None:
    for field, asked, known in (
        ("targets", options.targets, export_targets()),
        ("variants", options.variants, VARIANTS),
        ("runtimes", options.runtimes, export_runtimes()),
    ):
        for name in asked:
            if name not in known:
                raise violation(f"export.{field}", f"one of {', '.join(known)}", name)
    _whole("export.max_batch", options.max_batch, 1, 1024)
    _known("export.parity_images", options_pb2.ParityImages, options.parity_images)
    _whole("export.fixed_batch", options.fixed_batch, 1, 1024)
    _whole("export.quantisation_training_steps", options.quantisation_training_steps, 1, 100_000)
    _number("export.accuracy_budget", options.accuracy_budget, least=0.0, most=1.0)


def _whole(field: str, value: int, least: int, most: int) -> None:
    if value != 0 and not least <= value <= most:
        raise violation(field, f"{least} to {most}, or 0 for the default", value)


def _number(field: str, value: float, *, least: float, most: float = math.inf, below: float = math.inf) -> None:
    _finite(field, value)
    if not (least <= value <= most and value < below):
        upper = f"below {below}" if below < math.inf else f"at most {most}" if most < math.inf else "finite"
        raise violation(field, f"at least {least} and {upper}", value)


def _finite(field: str, value: float) -> None:
    if not math.isfinite(value):
        raise violation(field, "a finite number", value)


def _known(field: str, kind: Any, value: int) -> None:
    if value not in kind.values():
        raise violation(field, f"a value of {kind.DESCRIPTOR.name}", value)


def _text(field: str, value: str, limit: int) -> None:
    if not 1 <= len(value) <= limit or not value.isprintable():
        shown = value if len(value) <= limit else f"{len(value)} characters"
        raise violation(field, f"1 to {limit} printable characters", shown)
