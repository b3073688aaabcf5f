from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pu_engine.errors import EngineError
from pu_engine.student.catalogue import build
from pu_engine.training.own_weights import load_own


def written(path: Path, name: str = "cifar_resnet8", classes: int = 3) -> Path:
    torch.manual_seed(1)
    save_file(build(name, 16, 3, classes).state_dict(), path)
    return path


def student(seed: int = 2) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build("cifar_resnet8", 16, 3, 3)


def test_weights_of_the_same_student_are_taken_whole(tmp_path: Path) -> None:
    module = student()
    assert load_own(module, written(tmp_path / "w.safetensors")) == ()
    torch.manual_seed(1)
    for name, value in build("cifar_resnet8", 16, 3, 3).state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def test_a_classifier_of_another_task_stays_behind(tmp_path: Path) -> None:
    module, fresh = student(), student()
    assert load_own(module, written(tmp_path / "w.safetensors", classes=100)) == ("head.weight", "head.bias")
    assert torch.equal(module.state_dict()["head.weight"], fresh.state_dict()["head.weight"])
    assert not torch.equal(module.state_dict()["stem.weight"], fresh.state_dict()["stem.weight"])


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"has no place for blocks\.3") as caught:
        load_own(student(), written(tmp_path / "w.safetensors", name="cifar_resnet14"))
    assert caught.value.code == "STUDENT_UNSUPPORTED"


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(EngineError, match="not safetensors"):
        load_own(student(), tmp_path / "w.safetensors")
