"""The whole pipeline in one process, as a notebook runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort
import pytest

from pu_engine import compress
from pu_engine.compression import run_stages
from pu_engine.pipeline import KINDS
from pu_engine.progress import SilentProgress
from pu_engine.results import file_sha256, read_manifest


class SmallJob(Protocol):
    teacher: Path
    images: Path
    pool_tar: Path


@pytest.fixture(scope="module")
def pool(small_job: SmallJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tar = {"path": str(small_job.pool_tar), "sha256": file_sha256(small_job.pool_tar)}
    spec = {"name": "stripes", "tars": [tar]}
    out = tmp_path_factory.mktemp("pool")
    stages = run_stages(KINDS["ingest"], spec, out, threads=1, progress=SilentProgress())
    return Path(dict(stages)["ingest"]["path"])


def test_a_teacher_becomes_a_student_that_agrees_with_it(tmp_path: Path, small_job: SmallJob, pool: Path) -> None:
    images = {folder.name: sorted(folder.iterdir()) for folder in sorted(small_job.images.iterdir())}
    options = {
        "student": {"name": "cifar_resnet8"},
        "distillation": {"steps": 120, "batch_size": 32},
        "selection": {"count": 800},
        "export": {"targets": ["cpu"]},
    }
    out = compress(teacher=small_job.teacher, images=images, pool=pool, out=tmp_path, options=options, threads=1)
    report = json.loads((out / "report.json").read_text())
    assert {"teacher", "student", "stages", "selection", "verdicts", "variants"} <= set(report)
    assert report["selection"]["picked"] == 800
    assert report["student"]["agreement"] > 0.9
    session = ort.InferenceSession(str(out / "student.onnx"))
    logits = session.run(None, {"input": np.zeros((3, 3, 16, 16), np.float32)})[0]
    assert logits.shape == (3, 4)

    again = compress(teacher=small_job.teacher, images=images, pool=pool, out=tmp_path, options=options, threads=1)
    assert again == out
    assert "student.onnx" in {row["path"] for row in read_manifest(out)["files"] if row["reproducible"]}

    smaller = {**options, "export": {"targets": ["cpu"], "max_batch": 4}}
    changed = compress(teacher=small_job.teacher, images=images, pool=pool, out=tmp_path, options=smaller, threads=1)
    gates = [verdict["gate"] for verdict in json.loads((changed / "report.json").read_text())["verdicts"]]
    assert any(gate.endswith("at batch 1, 4") for gate in gates)

    pixels = {"targets": ["cpu"], "include_preprocessing": True, "softmax": True}
    asked = {**options, "export": pixels}
    other = compress(teacher=small_job.teacher, images=images, pool=pool, out=tmp_path, options=asked, threads=1)
    said = json.loads((other / "report.json").read_text())
    for variant in said["variants"]:
        session = ort.InferenceSession(str(other / variant["path"]))
        answers = session.run(None, {"input": np.zeros((3, 16, 16, 3), np.uint8)})[0]
        np.testing.assert_allclose(answers.sum(axis=1), 1.0, atol=1e-5)
    assert [v["passed"] for v in said["verdicts"]] == [True, True, True]
    assert [bundle["path"] for bundle in said["bundles"]] == ["bundle-cpu.zip"]
