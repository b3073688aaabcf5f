from __future__ import annotations

import math
from collections.abc import Callable

import grpc
import pytest

from punnet.errors import PunnetError
from punnet.v1 import catalogue_pb2, compression_pb2, options_pb2, pool_pb2
from server.job_spec import compression_spec, digests_of, located, readable_paths
from server.request_check import check_compression, check_ingest
from tests.service.running_server import RunningServer, image_tar, reason

SHA256 = "a" * 64
Change = Callable[[compression_pb2.CompressRequest], object]
POOL = {"name": "web", "sha256": "c" * 64}


def request() -> compression_pb2.CompressRequest:
    rows = [options_pb2.ImageBlob(label=label, sha256="b" * 64) for label in ("cat", "dog")]
    return compression_pb2.CompressRequest(
        teacher=options_pb2.Teacher(sha256=SHA256),
        images=options_pb2.LabelledImages(blobs=options_pb2.ImageBlobs(images=rows)),
        pool="web",
    )


def test_smallest_request_is_accepted_and_leaves_the_defaults_to_the_engine() -> None:
    check_compression(request(), pool_needed=True)
    spec = compression_spec(request(), POOL)
    assert spec == {
        "teacher": {"sha256": SHA256},
        "images": {"files": [{"label": label, "image": {"sha256": "b" * 64}} for label in ("cat", "dog")]},
        "seed": 0,
        "pool": {"name": "web", "sha256": "c" * 64},
    }


VIOLATIONS: list[tuple[str, Change]] = [
    ("request_id", lambda r: setattr(r, "request_id", "a b")),
    ("request_id", lambda r: setattr(r, "request_id", "a" * 65)),
    ("teacher.sha256", lambda r: setattr(r.teacher, "sha256", "A" * 64)),
    ("teacher.sha256", lambda r: setattr(r.teacher, "sha256", "a" * 63)),
    ("teacher.external_data['w']", lambda r: r.teacher.external_data.update({"w": "x"})),
    ("teacher.external_data", lambda r: r.teacher.external_data.update({"a\nb": SHA256})),
    ("teacher.display_name", lambda r: setattr(r.teacher, "display_name", "x" * 201)),
    ("teacher.class_names", lambda r: r.teacher.class_names.extend(["a", "a"])),
    ("teacher.class_names", lambda r: r.teacher.class_names.extend(["a", ""])),
    ("teacher.taps", lambda r: r.teacher.taps.extend(["a", "a"])),
    ("teacher.taps", lambda r: r.teacher.taps.extend(["a", "x" * 513])),
    ("teacher.taps", lambda r: r.teacher.taps.extend(f"t{i}" for i in range(17))),
    ("images.blobs.images.label", lambda r: setattr(r.images.blobs.images[0], "label", "")),
    ("images.blobs.images.label", lambda r: setattr(r.images.blobs.images[0], "label", "\u202e")),
    ("images.blobs.images.sha256", lambda r: setattr(r.images.blobs.images[0], "sha256", "../x")),
    ("images.tar.sha256", lambda r: setattr(r.images.tar, "sha256", "")),
    ("pool", lambda r: setattr(r, "pool", "../etc")),
    ("pool", lambda r: setattr(r, "pool", "Web")),
    ("pool", lambda r: setattr(r, "pool", "")),
    ("student.name", lambda r: setattr(r.student, "name", "a\0b")),
    ("student.size", lambda r: setattr(r.student, "size", 7)),
    ("student.size", lambda r: setattr(r.student, "size", 1025)),
    ("student.max_parameters", lambda r: setattr(r.student, "max_parameters", -1)),
    ("student.max_latency_ms", lambda r: setattr(r.student, "max_latency_ms", math.inf)),
    ("preprocessing.layout", lambda r: setattr(r.preprocessing, "layout", 9)),
    ("preprocessing.scale", lambda r: setattr(r.preprocessing, "scale", math.nan)),
    ("preprocessing.scale", lambda r: setattr(r.preprocessing, "scale", -1.0)),
    ("preprocessing.mean", lambda r: r.preprocessing.mean.extend([1.0, 2.0])),
    ("preprocessing.std", lambda r: r.preprocessing.std.extend([1.0, 0.0, 1.0])),
    ("preprocessing", lambda r: r.preprocessing.mean.extend([1.0, 2.0, 3.0])),
    ("preprocessing.height", lambda r: setattr(r.preprocessing, "height", 3)),
    ("preprocessing.width", lambda r: setattr(r.preprocessing, "width", 4097)),
    ("selection.score", lambda r: setattr(r.selection, "score", 99)),
    ("selection.rule", lambda r: setattr(r.selection, "rule", 99)),
    ("selection.count", lambda r: setattr(r.selection, "count", -5)),
    ("selection.threshold", lambda r: setattr(r.selection, "threshold", 1.5)),
    ("selection.prior", lambda r: setattr(r.selection, "prior", 1.0)),
    ("distillation.steps", lambda r: setattr(r.distillation, "steps", 10_000_001)),
    ("distillation.batch_size", lambda r: setattr(r.distillation, "batch_size", 7)),
    ("distillation.learning_rate", lambda r: setattr(r.distillation, "learning_rate", -0.1)),
    ("distillation.temperature", lambda r: setattr(r.distillation, "temperature", math.nan)),
    ("distillation.labelled_share", lambda r: setattr(r.distillation, "labelled_share", 1.1)),
    ("distillation.label_weight", lambda r: setattr(r.distillation, "label_weight", -1.0)),
    ("distillation.class_weights", lambda r: setattr(r.distillation, "class_weights", 9)),
    ("distillation.radius", lambda r: setattr(r.distillation, "radius", math.inf)),
    ("distillation.loss", lambda r: r.distillation.loss.update({"mse": 1.0})),
    ("distillation.loss", lambda r: r.distillation.loss.update({"kl": 0.0})),
    ("distillation.loss['dkd']", lambda r: r.distillation.loss.update({"dkd": -1.0})),
    ("distillation.effort", lambda r: setattr(r.distillation, "effort", 9)),
    ("distillation.minutes", lambda r: setattr(r.distillation, "minutes", math.inf)),
    ("distillation.views", lambda r: setattr(r.distillation, "views", 65)),
    ("distillation.average_decay", lambda r: setattr(r.distillation, "average_decay", 1.0)),
    ("distillation.precision", lambda r: setattr(r.distillation, "precision", 9)),
    ("selection.class_floors['cat']", lambda r: r.selection.class_floors.update({"cat": -1})),
    ("selection.class_caps['*']", lambda r: r.selection.class_caps.update({"*": 2**62 + 1})),
    ("selection.class_caps", lambda r: r.selection.class_caps.update({"x" * 201: 1})),
    ("selection.excluded_sha256", lambda r: setattr(r.selection, "excluded_sha256", "test.tar")),
    ("student.weights_sha256", lambda r: setattr(r.student, "weights_sha256", "w.safetensors")),
    ("export.targets", lambda r: r.export.targets.append("toaster")),
    ("export.variants", lambda r: r.export.variants.append("int4")),
    ("export.fixed_batch", lambda r: setattr(r.export, "fixed_batch", 2000)),
    ("export.accuracy_budget", lambda r: setattr(r.export, "accuracy_budget", 1.5)),
    ("export.runtimes", lambda r: r.export.runtimes.append("toaster")),
    ("export.quantisation_training_steps", lambda r: setattr(r.export, "quantisation_training_steps", -1)),
    ("export.max_batch", lambda r: setattr(r.export, "max_batch", 1025)),
    ("seed", lambda r: setattr(r, "seed", 2**31)),
    ("seed", lambda r: setattr(r, "seed", -1)),
]


@pytest.mark.parametrize(("field", "change"), VIOLATIONS, ids=[f"{i}-{f}" for i, (f, _) in enumerate(VIOLATIONS)])
def test_field_out_of_range_is_named_with_limit_and_value(field: str, change: Change) -> None:
    wrong = request()
    change(wrong)
    with pytest.raises(PunnetError) as refused:
        check_compression(wrong, pool_needed=True)
    assert refused.value.code == "REQUEST_INVALID"
    assert refused.value.details["field"] == field
    assert f"Field {field}: must be " in refused.value.message
    assert refused.value.details["limit"] in refused.value.message
    assert refused.value.remedy


def test_request_without_images_is_refused() -> None:
    for source in (options_pb2.LabelledImages(), options_pb2.LabelledImages(blobs=options_pb2.ImageBlobs())):
        wrong = request()
        wrong.images.CopyFrom(source)
        with pytest.raises(PunnetError) as refused:
            check_compression(wrong, pool_needed=True)
        assert refused.value.code == "IMAGES_MISSING"


def test_images_of_one_class_are_refused() -> None:
    wrong = request()
    wrong.images.blobs.images[1].label = "cat"
    with pytest.raises(PunnetError) as refused:
        check_compression(wrong, pool_needed=True)
    assert refused.value.code == "IMAGES_ONE_CLASS"
    assert "'cat'" in refused.value.message


def test_more_than_a_thousand_inline_images_are_refused() -> None:
    wrong = request()
    rows = [options_pb2.InlineImage(label=label, data=b"x") for label in ("cat", "dog")]
    wrong.images.inline.images.extend(rows * 500)
    check_compression(wrong, pool_needed=True)
    wrong.images.inline.images.extend(rows[:1])
    with pytest.raises(PunnetError) as refused:
        check_compression(wrong, pool_needed=True)
    details = refused.value.details
    assert (refused.value.code, details["field"], details["value"]) == (
        "REQUEST_INVALID",
        "images.inline.images",
        "1001",
    )
    assert "at most 1000 images" in details["limit"]


def test_inline_images_above_two_mebibytes_are_refused() -> None:
    wrong = request()
    rows = [options_pb2.InlineImage(label=label, data=b"x" * (3 << 19)) for label in ("cat", "dog")]
    wrong.images.inline.images.extend(rows)
    with pytest.raises(PunnetError) as refused:
        check_compression(wrong, pool_needed=True)
    assert refused.value.details["field"] == "images.inline"


def test_a_loss_of_named_parts_has_no_other_ones() -> None:
    whole = request()
    whole.distillation.loss["dkd"] = 0.5
    whole.distillation.temperature = 2.0
    assert compression_spec(whole, POOL)["distillation"] == {"loss": {"kl": 0.0, "dkd": 0.5, "temperature": 2.0}}


def test_first_weights_are_a_blob_of_the_spec() -> None:
    whole = request()
    whole.student.weights_sha256 = "d" * 64
    spec = compression_spec(whole, POOL)
    assert spec["student"] == {"weights": {"sha256": "d" * 64}}
    assert "d" * 64 in digests_of(spec)


def test_bounds_of_classes_and_excluded_images_reach_the_spec() -> None:
    whole = request()
    whole.selection.class_floors["cat"] = 20
    whole.selection.class_caps.update({"*": 100, "dog": 0})
    whole.selection.keep_look_alikes = True
    whole.selection.excluded_sha256 = "e" * 64
    spec = compression_spec(whole, POOL)
    assert spec["selection"] == {
        "class_floors": {"cat": 20}, "class_caps": {"*": 100, "dog": 0}, "keep_look_alikes": True,
        "excluded": {"sha256": "e" * 64},
    }  # fmt: skip
    assert "e" * 64 in digests_of(spec)


def test_all_options_reach_the_spec_under_the_engines_names() -> None:
    whole = request()
    whole.teacher.external_data["w.bin"] = "d" * 64
    whole.preprocessing.layout = options_pb2.LAYOUT_FLAT
    whole.preprocessing.channels = options_pb2.CHANNEL_ORDER_GRAY
    whole.student.name = "resnet18"
    whole.selection.score = options_pb2.SCORE_RELATIVE_MAHALANOBIS
    whole.selection.rule = options_pb2.SELECTION_RULE_THRESHOLD
    whole.distillation.class_weights = options_pb2.CLASS_WEIGHTS_CHI2
    whole.distillation.label_weight = 0.0
    whole.export.targets.append("cpu")
    whole.export.variants.append("int8-cpu")
    whole.export.softmax = True
    whole.export.fixed_batch = 4
    whole.export.accuracy_budget = 0.0
    whole.export.quantisation_training_steps = 0
    whole.export.runtimes.append("openvino")
    whole.seed = 7
    spec = compression_spec(whole, POOL)
    assert spec["external_data"] == {"w.bin": {"sha256": "d" * 64}}
    assert spec["preprocessing"] == {"layout": "flat", "channels": "GRAY"}
    assert spec["student"] == {"name": "resnet18"}
    assert spec["selection"] == {"score": "relative_mahalanobis", "rule": "threshold", "threshold": 0.0}
    assert spec["distillation"] == {"class_weights": "chi2", "loss": {"labels": 0.0}}
    assert spec["export"] == {
        "targets": ["cpu"], "variants": ["int8-cpu"], "softmax": True, "fixed_batch": 4, "accuracy_budget": 0.0,
        "quantisation_training_steps": 0, "runtimes": ["openvino"],
    }  # fmt: skip
    assert spec["seed"] == 7


def test_stage_reads_the_jobs_blobs_as_one_folder(folder: object) -> None:
    from pathlib import Path

    blobs, pools = Path(str(folder)) / "job", Path(str(folder)) / "pools"
    spec = located(compression_spec(request(), POOL), blobs, pools)
    assert spec["teacher"] == {"path": str(blobs.resolve() / SHA256), "sha256": SHA256}
    assert readable_paths(spec, blobs) == sorted([blobs.resolve(), (pools / "web" / ("c" * 64)).resolve()])


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a" * 64, "a/b", ".."])
def test_name_that_is_no_pools_is_refused(name: str) -> None:
    with pytest.raises(PunnetError) as refused:
        check_ingest(pool_pb2.CreatePoolRequest(name=name, tar_sha256=[SHA256]))
    assert refused.value.details["field"] == "name"


def test_refusal_at_the_door_carries_code_field_and_remedy(shared_server: RunningServer) -> None:
    wrong = request()
    wrong.distillation.steps = -1
    with pytest.raises(grpc.RpcError) as refused:
        shared_server.compression.Compress(wrong)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    code, details = reason(refused.value)
    assert code == "REQUEST_INVALID"
    assert details["field"] == "distillation.steps"
    assert details["value"] == "-1"
    assert details["remedy"]


def test_pool_that_is_not_there_is_not_found(shared_server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        shared_server.compression.Compress(request())
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert reason(refused.value)[0] == "POOL_NOT_FOUND"


def test_blob_that_is_not_there_is_missing(shared_server: RunningServer) -> None:
    wanted = request()
    wanted.validate_only = True
    wanted.pool = ""
    with pytest.raises(grpc.RpcError) as refused:
        shared_server.compression.Compress(wanted)
    assert reason(refused.value)[0] == "BLOB_MISSING"


def test_student_that_nobody_knows_is_refused_at_the_door(shared_server: RunningServer) -> None:
    shared_server.ended(shared_server.ingest("web", shared_server.upload(image_tar(5))).id)
    wanted = request()
    wanted.student.name = "resnet_of_nobody"
    with pytest.raises(grpc.RpcError) as refused:
        shared_server.compression.Compress(wanted)
    assert reason(refused.value)[0] == "STUDENT_UNKNOWN"


@pytest.mark.parametrize("part", ["x" * 101, "a\nb"])
def test_search_for_a_student_names_its_limit(shared_server: RunningServer, part: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        shared_server.catalogue.ListStudents(catalogue_pb2.ListStudentsRequest(name_contains=part))
    code, details = reason(refused.value)
    assert (code, details["field"], details["value"]) == ("REQUEST_INVALID", "name_contains", repr(part)[:80])
    assert details["limit"] == "at most 100 printable characters"


@pytest.mark.parametrize(("field", "value"), [("measure", "a\nb"), ("measure_size", 7), ("measure_size", 1025)])
def test_a_student_to_measure_is_checked(shared_server: RunningServer, field: str, value: str | int) -> None:
    wanted = catalogue_pb2.ListStudentsRequest(measure="cifar_resnet8")
    setattr(wanted, field, value)
    with pytest.raises(grpc.RpcError) as refused:
        shared_server.catalogue.ListStudents(wanted)
    code, details = reason(refused.value)
    assert (code, details["field"], details["value"]) == ("REQUEST_INVALID", field, repr(value))
