from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from pu_engine.errors import EngineError
from pu_engine.student import catalogue


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("cifar_resnet8", 75_290, None), ("cifar_resnet14", 172_506, None), ("cifar_resnet20", 269_722, 40_551_040)],
)
def test_cifar_resnets_have_the_published_counts(name: str, parameters: int, macs: int | None) -> None:
    module = catalogue.build(name, 32, 3, 10)
    assert catalogue.count_parameters(module) == parameters
    if macs is not None:
        assert catalogue.count_macs(module, 32, 3) == macs


def test_cifar_resnet56_has_56_layers_with_weights() -> None:
    module = catalogue.build("cifar_resnet56", 32, 3, 10)
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in module.modules()) == 56


def test_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = catalogue.CifarBlock(2, 4).eval()
    nn.init.zeros_(block.conv2.weight)
    image = torch.rand(1, 2, 4, 4)
    shortcut = block(image)
    assert torch.equal(shortcut[:, 1:3], image[:, :, ::2, ::2])
    assert shortcut[:, [0, 3]].abs().sum() == 0


def test_gray_images_and_odd_sizes_fit() -> None:
    module = catalogue.build("cifar_resnet8", 27, 1, 4)
    assert module(torch.zeros(2, 1, 27, 27)).shape == (2, 4)


def test_macs_of_one_convolution_and_one_layer_are_counted_by_hand() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, groups=1), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    assert catalogue.count_macs(module, 8, 3) == 8 * 4 * 4 * 3 * 9 + 8 * 4 * 4 * 5


def test_counting_leaves_mode_and_hooks_as_they_were() -> None:
    module = catalogue.build("cifar_resnet8", 16, 3, 3).train()
    catalogue.count_macs(module, 16, 3)
    assert module.training
    assert not any(m._forward_hooks for m in module.modules())


@pytest.mark.parametrize(("size", "name"), [(28, "cifar_resnet20"), (64, "cifar_resnet20")])
def test_small_images_get_the_cifar_resnet(size: int, name: str) -> None:
    assert catalogue.default_name(size) == name


def test_large_images_get_a_mobile_network() -> None:
    assert catalogue.default_name(65) == "mobilenetv4_conv_small"


def test_an_unknown_name_is_refused_with_close_ones() -> None:
    with pytest.raises(EngineError) as caught:
        catalogue.build("cifar_resnet21", 32, 3, 10)
    assert caught.value.code == "STUDENT_UNKNOWN"
    assert "cifar_resnet20" in caught.value.remedy


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "local-dir:/tmp", "resnet18.a1_in1k", "../resnet18"])
def test_addresses_are_not_names(name: str) -> None:
    with pytest.raises(EngineError) as caught:
        catalogue.build(name, 32, 3, 10)
    assert caught.value.code == "STUDENT_UNKNOWN"


def test_a_size_that_a_network_cannot_take_is_unsupported() -> None:
    with pytest.raises(EngineError) as caught:
        catalogue.build("levit_128s", 32, 3, 10)
    assert caught.value.code == "STUDENT_UNSUPPORTED"
    assert "32 x 32" in caught.value.message


def test_tiny_images_are_unsupported() -> None:
    with pytest.raises(EngineError) as caught:
        catalogue.build("cifar_resnet8", 7, 3, 10)
    assert caught.value.code == "STUDENT_UNSUPPORTED"


def test_a_small_image_keeps_its_resolution_through_the_stem() -> None:
    small = catalogue.build("resnet18", 32, 3, 10)
    large = catalogue.build("resnet18", 96, 3, 10)
    assert small.get_submodule("conv1").stride == (1, 1)
    assert isinstance(small.get_submodule("maxpool"), nn.Identity)
    assert large.get_submodule("conv1").stride == (2, 2)
    assert isinstance(large.get_submodule("maxpool"), nn.MaxPool2d)


def test_a_stem_of_several_branches_is_adapted_as_a_whole() -> None:
    module = catalogue.build("fastvit_t8", 32, 3, 10)
    first = module.get_submodule("stem.0")
    assert first.stride == 1
    assert first(torch.zeros(2, 3, 32, 32)).shape[2:] == (32, 32)


def test_a_patch_embedding_is_left_alone() -> None:
    module = catalogue.build("convnext_atto", 32, 3, 10)
    assert module.get_submodule("stem.0").stride == (4, 4)


def test_a_transformer_of_fixed_size_is_built_at_the_size_asked_for() -> None:
    module = catalogue.build("vit_tiny_patch16_224", 64, 3, 10)
    assert module(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


def test_gray_reaches_the_first_convolution() -> None:
    assert catalogue.build("mobilenetv3_small_050", 32, 1, 10)(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_catalogue_finds_by_part_of_the_name() -> None:
    found = catalogue.catalogue("cifar_resnet20")
    assert [entry.name for entry in found] == ["cifar_resnet20"]
    assert found[0].parameters == 269_722
    others = catalogue.catalogue("mobilenetv4_conv_small")
    assert {entry.source for entry in others} == {"timm"}
    assert all(entry.parameters == 0 and entry.size >= 224 for entry in others)


def test_catalogue_is_sorted_and_recommends_counted_students() -> None:
    found = catalogue.catalogue()
    assert [e.name for e in found] == sorted(e.name for e in found)
    assert {"cifar_resnet20", "mobilenetv4_conv_small"} <= {e.name for e in found}
    assert all(e.parameters > 0 and e.macs > 0 for e in found)


def test_command_prints_one_checked_student(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue.main(["--json", "--check", "cifar_resnet14"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["students"]
    assert entry == {
        "name": "cifar_resnet14",
        "parameters": 172_506,
        "macs": 26_395_264,
        "size": 32,
        "source": "punnet",
        "latency_ms": 0.0,
    }


@pytest.mark.slow  # it exports a network
def test_command_times_a_student_at_the_size_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue.main(["--json", "--time", "cifar_resnet8", "--size", "16"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["students"]
    assert entry["size"] == 16
    assert entry["macs"] < catalogue.measure("cifar_resnet8").macs
    assert 0 < entry["latency_ms"] < 1000


def test_command_prints_the_error_of_an_unknown_student(capsys: pytest.CaptureFixture[str]) -> None:
    assert catalogue.main(["--json", "--check", "resnet181"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "STUDENT_UNKNOWN"
