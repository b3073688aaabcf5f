"""The pipeline as data: what a stage reads, and what its result is reused by."""

from __future__ import annotations

import importlib
import typing

import pytest

from pu_engine.jsonform import from_json
from pu_engine.pipeline import GATHERING, INTAKE, KINDS, SCORING, SELECTION, STAGES, stage_inputs, stage_key

VERSIONS = {"torch": "2.13"}
FOLDER = {"path": "f", "sha256": "00"}
SPEC = {
    "teacher": {"path": "t.onnx", "sha256": "11"},
    "images": {"tar": {"path": "i.tar", "sha256": "22"}},
    "pool": {"path": "p", "sha256": "33"},
    "name": "a-pool",
    "tars": [],
    "student": {"name": "cifar_resnet8", "size": 16},
    "distillation": {"steps": 10, "batch_size": 32},
    "selection": {"score": "random"},
    "export": {"targets": ["cpu"]},
    "seed": 3,
}


@pytest.mark.parametrize("name", sorted(STAGES))
def test_every_stage_can_read_the_inputs_that_the_pipeline_gives_it(name: str) -> None:
    stage = STAGES[name]
    run = importlib.import_module(stage.module).run
    inputs = stage_inputs(stage, SPEC, dict.fromkeys(stage.needs, FOLDER)) | {"threads": 2}
    from_json(typing.get_type_hints(run)["inputs"], inputs)


def test_every_need_is_met_by_an_earlier_stage() -> None:
    for stages in KINDS.values():
        done: set[str] = set()
        for stage in stages:
            assert set(stage.needs) <= done
            done.add(stage.name)


def test_a_lifted_value_is_read_from_its_group() -> None:
    inputs = stage_inputs(SELECTION, SPEC, {"intake": FOLDER, "scoring": FOLDER, "budget": FOLDER})
    assert inputs["batch_size"] == 32
    assert "labelled_share" not in inputs
    gathering = stage_inputs(GATHERING, SPEC, {"intake": FOLDER, "scoring": FOLDER, "selection": FOLDER})
    assert gathering["size"] == 16


def test_a_key_follows_the_content_and_not_the_place() -> None:
    here = stage_inputs(INTAKE, SPEC, {})
    there = stage_inputs(INTAKE, {**SPEC, "teacher": {"path": "elsewhere", "sha256": "11"}}, {})
    other = stage_inputs(INTAKE, {**SPEC, "teacher": {"path": "t.onnx", "sha256": "12"}}, {})
    assert stage_key(INTAKE, here, VERSIONS) == stage_key(INTAKE, there, VERSIONS)
    assert stage_key(INTAKE, here, VERSIONS) != stage_key(INTAKE, other, VERSIONS)


def test_what_only_training_reads_leaves_the_earlier_keys_alone() -> None:
    changed = {**SPEC, "student": {"name": "cifar_resnet14", "size": 16}}
    for stage in (INTAKE, SCORING, SELECTION, GATHERING):
        folders = dict.fromkeys(stage.needs, FOLDER)
        before = stage_key(stage, stage_inputs(stage, SPEC, folders), VERSIONS)
        assert stage_key(stage, stage_inputs(stage, changed, folders), VERSIONS) == before


def test_another_package_version_gives_another_key() -> None:
    inputs = stage_inputs(INTAKE, SPEC, {})
    assert stage_key(INTAKE, inputs, VERSIONS) != stage_key(INTAKE, inputs, {"torch": "2.14"})
