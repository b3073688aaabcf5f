"""Keywords become requests; the contract's names are the only list of names."""

from __future__ import annotations

import pytest

from punnet.errors import InvalidRequest
from punnet.options import (
    CompressOptions,
    compress_request,
    create_pool_request,
    inspect_request,
    names,
    shrink_of,
)
from punnet.v1 import options_pb2


def test_nothing_stated_leaves_every_field_to_the_appliance() -> None:
    request = compress_request("p", {})
    for group in (request.student, request.preprocessing, request.selection, request.distillation, request.export):
        assert group == type(group)()
    assert request.pool == "p"
    assert not request.validate_only


def test_every_keyword_reaches_its_field() -> None:
    options = CompressOptions(
        student="cifar_resnet20", size=32, max_parameters=1, max_macs=2, max_latency_ms=3.0,
        score="relative-mahalanobis", rule="TOP", picks=4, threshold=0.5, prior=0.25,
        class_floors={"a": 2}, class_caps={"*": 9, "a": 0}, keep_look_alikes=True, excluded="test",
        steps=5, batch_size=8, learning_rate=0.5, temperature=2.0, labelled_share=0.5, label_weight=0.0,
        class_weights="chi2", radius=0.125, targets=["cpu"], max_batch=7, parity_images="own",
        variants=["fp32", "int8-cpu"], include_preprocessing=True, softmax=True, fixed_batch=3, accuracy_budget=0.0,
        max_bytes=11, student_weights="w.safetensors", loss={"kl": 0.5, "dkd": 1.0}, effort="patient", minutes=1.5,
        draws="balanced", teacher_targets="live", views=3, mixup=0.25, cutmix=1.0, clip_norm=2.5, average_decay=0.875,
        precision="bf16", compiled=True, runtimes=["openvino"], quantisation_training_steps=0,
        layout="nhwc", channels="bgr", scale=1.0, mean=[1.0], std=[2.0], input_height=30, input_width=31,
        fit="crop",
        seed=9, validate_only=True, request_id="r", class_names=["a"], taps=["t"],
    )  # fmt: skip
    assert set(options) == set(CompressOptions.__annotations__)
    request = compress_request("p", options)
    assert request.student == options_pb2.StudentOptions(
        name="cifar_resnet20", size=32, max_parameters=1, max_macs=2, max_latency_ms=3.0, max_bytes=11
    )
    assert request.selection == options_pb2.SelectionOptions(
        score=options_pb2.SCORE_RELATIVE_MAHALANOBIS,
        rule=options_pb2.SELECTION_RULE_TOP,
        count=4,
        threshold=0.5,
        prior=0.25,
        class_floors={"a": 2},
        class_caps={"*": 9, "a": 0},
        keep_look_alikes=True,
    )
    assert request.distillation == options_pb2.DistillationOptions(
        steps=5,
        batch_size=8,
        learning_rate=0.5,
        temperature=2.0,
        labelled_share=0.5,
        label_weight=0.0,
        class_weights=options_pb2.CLASS_WEIGHTS_CHI2,
        radius=0.125,
        loss={"kl": 0.5, "dkd": 1.0},
        effort=options_pb2.EFFORT_PATIENT,
        minutes=1.5,
        draws=options_pb2.DRAWS_BALANCED,
        targets=options_pb2.TEACHER_TARGETS_LIVE,
        views=3,
        mixup=0.25,
        cutmix=1.0,
        clip_norm=2.5,
        average_decay=0.875,
        precision=options_pb2.PRECISION_BF16,
        compiled=True,
    )
    assert request.distillation.HasField("label_weight")
    assert request.export == options_pb2.ExportOptions(
        targets=["cpu"],
        max_batch=7,
        parity_images=options_pb2.PARITY_IMAGES_OWN,
        variants=["fp32", "int8-cpu"],
        include_preprocessing=True,
        softmax=True,
        fixed_batch=3,
        accuracy_budget=0.0,
        quantisation_training_steps=0,
        runtimes=["openvino"],
    )
    assert request.export.HasField("accuracy_budget")
    assert request.export.HasField("quantisation_training_steps")
    assert request.preprocessing == options_pb2.Preprocessing(
        layout=options_pb2.LAYOUT_NHWC,
        channels=options_pb2.CHANNEL_ORDER_BGR,
        scale=1.0,
        mean=[1.0],
        std=[2.0],
        height=30,
        width=31,
        fit=options_pb2.FIT_CROP,
    )
    assert (request.seed, request.validate_only, request.request_id) == (9, True, "r")


def test_inspection_takes_the_stated_preprocessing() -> None:
    request = inspect_request({"layout": "flat", "seed": 3})
    assert request.preprocessing.layout == options_pb2.LAYOUT_FLAT
    assert request.seed == 3


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(InvalidRequest, match="balanced, top, threshold"):
        compress_request("p", {"rule": "best"})


@pytest.mark.parametrize("keyword", ["steps", "temperature", "picks", "size", "scale", "max_batch"])
def test_zero_that_would_mean_the_default_is_refused(keyword: str) -> None:
    options: CompressOptions = {keyword: 0}  # type: ignore[misc]
    with pytest.raises(InvalidRequest, match=f"{keyword} is 0"):
        compress_request("p", options)


@pytest.mark.parametrize(
    ("keyword", "value", "limit"),
    [("seed", 99999999999999999999, 2**31 - 1), ("seed", -1, 2**31 - 1), ("steps", 2**31, 2**31 - 1),
     ("max_macs", 2**63, 2**63 - 1), ("input_height", 10**20, 2**31 - 1)],
)  # fmt: skip
def test_number_that_no_field_can_hold_names_option_and_range(keyword: str, value: int, limit: int) -> None:
    options: CompressOptions = {keyword: value}  # type: ignore[misc]
    with pytest.raises(InvalidRequest, match=rf"{keyword} is {value}\.") as caught:
        compress_request("p", options)
    assert caught.value.code == "REQUEST_INVALID"
    assert f"to {limit}." in caught.value.remedy


def test_stored_side_and_quality_that_no_field_can_hold_are_refused() -> None:
    for side, quality in ((10**20, None), (64, 10**20)):
        with pytest.raises(InvalidRequest, match="can't be shrunk"):
            shrink_of(side, quality)


def test_requests_get_an_id_of_their_own_so_that_they_can_be_sent_again() -> None:
    ids = {
        compress_request("p", {}).request_id,
        inspect_request({}).request_id,
        create_pool_request("p", []).request_id,
    }
    assert len(ids) == 3
    assert all(len(i) == 32 for i in ids)
    assert create_pool_request("p", ["d"], "mine").request_id == "mine"


def test_unspecified_is_no_name() -> None:
    assert names("layout") == ["nchw", "nhwc", "flat"]
    assert "auto" in names("score")
