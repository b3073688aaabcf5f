"""A request is filled from an earlier job's spec, and what it states itself counts."""

from __future__ import annotations

from typing import Any

import pytest

from punnet.errors import PunnetError
from punnet.v1 import compression_pb2, options_pb2
from server.job_spec import compression_spec
from server.request_check import check_compression
from server.rerun import fill_material, merge_options

POOL = {"name": "web", "sha256": "p"}
A, B, C = "a" * 64, "b" * 64, "c" * 64


def earlier_request() -> compression_pb2.CompressRequest:
    return compression_pb2.CompressRequest(
        teacher=options_pb2.Teacher(
            sha256=A, external_data={"w.bin": B}, display_name="t.onnx", class_names=["x", "y"], taps=["tap"]
        ),
        images=options_pb2.LabelledImages(tar=options_pb2.TarBlob(sha256=C)),
        pool="web",
        student=options_pb2.StudentOptions(name="cifar_resnet8", size=16),
        distillation=options_pb2.DistillationOptions(steps=100, label_weight=0.0),
        selection=options_pb2.SelectionOptions(score=options_pb2.SCORE_PU),
        seed=7,
    )


def again(earlier: dict[str, Any], **stated: Any) -> dict[str, Any]:
    request = compression_pb2.CompressRequest(from_job="j", **stated)
    fill_material(request, earlier)
    check_compression(request, pool_needed=True)
    return merge_options(compression_spec(request, POOL | {"name": request.pool}), earlier)


def test_a_request_that_states_nothing_is_the_earlier_one() -> None:
    earlier = compression_spec(earlier_request(), POOL)
    assert again(earlier) == earlier


def test_what_is_stated_counts_and_its_neighbours_stay() -> None:
    earlier = compression_spec(earlier_request(), POOL)
    changed = again(
        earlier, distillation=options_pb2.DistillationOptions(steps=200), pool="other", seed=9,
        student=options_pb2.StudentOptions(name="cifar_resnet20"),
    )  # fmt: skip
    assert changed["distillation"] == {"steps": 200, "loss": {"labels": 0.0}}
    assert changed["student"] == {"name": "cifar_resnet20", "size": 16}
    assert (changed["pool"]["name"], changed["seed"]) == ("other", 9)
    unchanged = ("teacher", "images", "external_data", "selection", "class_names", "taps", "display_name")
    assert {name: changed[name] for name in unchanged} == {name: earlier[name] for name in unchanged}


def test_another_teacher_leaves_the_earlier_ones_names_and_taps_behind() -> None:
    changed = again(compression_spec(earlier_request(), POOL), teacher=options_pb2.Teacher(sha256=B))
    assert changed["teacher"] == {"sha256": B}
    assert {"external_data", "class_names", "taps", "display_name"} & changed.keys() == set()


def test_images_that_came_one_by_one_are_named_again() -> None:
    request = earlier_request()
    request.images.ClearField("tar")
    request.images.blobs.images.add(label="x", sha256=A)
    request.images.blobs.images.add(label="y", sha256=B)
    earlier = compression_spec(request, POOL | {"name": request.pool})
    assert again(earlier)["images"] == earlier["images"]


def test_a_job_without_a_teacher_is_refused() -> None:
    with pytest.raises(PunnetError, match="from_job"):
        fill_material(compression_pb2.CompressRequest(from_job="j"), {"name": "web", "tars": []})


def test_stated_parts_of_the_loss_replace_all_others_but_the_labels_weight() -> None:
    request = earlier_request()
    request.distillation.loss.update({"dkd": 1.0})
    request.distillation.temperature = 3.0
    earlier = compression_spec(request, POOL)
    assert earlier["distillation"]["loss"] == {"kl": 0.0, "dkd": 1.0, "labels": 0.0, "temperature": 3.0}
    weighted = again(earlier, distillation=options_pb2.DistillationOptions(label_weight=0.5))
    assert weighted["distillation"]["loss"] == {"kl": 0.0, "dkd": 1.0, "labels": 0.5, "temperature": 3.0}
    changed = again(earlier, distillation=options_pb2.DistillationOptions(loss={"kl": 2.0}))
    assert changed["distillation"]["loss"] == {"kl": 2.0, "labels": 0.0, "temperature": 3.0}
