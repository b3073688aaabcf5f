"""The report from finished stage folders: what is handed out, what it says, what it must not do."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pu_engine import ingest, report, verification
from pu_engine.imaging.thumbnails import thumbnail
from pu_engine.jsonform import to_json
from pu_engine.pages import report_data, report_page
from pu_engine.pages.differences import Confusion, Differences, WorstImage
from pu_engine.pages.report_samples import SelectionRows, class_rows, shown_answers, shown_classes
from pu_engine.picking.pick_types import PoorClass, ReliabilityBin
from pu_engine.planning.plan_types import PlanEstimates
from pu_engine.pools.pool import pool_folder
from pu_engine.pools.pool_types import IngestInputs
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest, file_sha256
from pu_engine.scores.score_types import Int8Trial, Precision, Scores
from pu_engine.teacher.fact_types import Latency
from pu_engine.types import (
    File,
    Folder,
    LabelledImages,
    Preprocessing,
    Recommendation,
    ReportInputs,
    Selection,
    Student,
    StudentSpec,
    Teacher,
    TrainingSet,
    Variant,
    Variants,
    Verdict,
    Verdicts,
)
from pu_engine.variants.bundle_types import Bundle, Bundles
from pu_engine.variants.export_types import Companion, NotMade
from server.page.outcome import read_outcome, read_samples
from tests.unit.conftest import FACTS

POOL_IMAGES = 30
DIFFERENCES = Differences(
    images=4, class_images=(2, 1, 1), class_agreements=(1, 1, 1),
    confusions=(Confusion(teacher=0, student=1, images=1),), worst=(WorstImage(row=2, teacher=0, student=1, kl=1.5),),
)  # fmt: skip
HOSTILE = "<script>alert(1)</script>"
GRAY = Preprocessing(
    layout="NCHW", channels="GRAY", scale=1 / 255, mean=(0.0,), std=(1.0,), dtype="float32", height=8, width=8
)
TEACHER = Teacher(
    preprocessing=GRAY, output="logits", batch=None, classes=3, class_order={"0": 0, HOSTILE: 1, "$x": 2},
    class_names=("0", HOSTILE, "$x"), taps=(), accuracy=0.95, accuracy_low=0.9, accuracy_high=0.98, images=60,
    hypotheses=(), parameters=388_000, macs=14_000_000, opset=18, producer="pytorch 2.13", facts=FACTS,
    teacher_sha256="a" * 64, teacher_bytes=1_580_185, display_name="teacher<b>.onnx",
    warnings=("Class 9 has no labelled images.",),
)  # fmt: skip
SELECTION = Selection(
    pool_images=POOL_IMAGES, picked=12, score="pu", why="A share of .25 looks like the source.", prior=0.25,
    prior_given=False, threshold=0.6, class_counts=(4, 4, 4), class_available=(10, 10, 10), warnings=("Few picks.",),
    reliability=(
        ReliabilityBin(pool=25, labelled=1, believed=0.1, read=0.05),
        ReliabilityBin(pool=5, labelled=5, believed=0.9, read=0.95),
    ),
    poor_classes=(
        PoorClass(
            name=HOSTILE, available=10, wanted=40, nearest="<b>/000003", nearest_class="$x", nearest_probability=0.25
        ),
    ),
    look_alikes=7, excluded=2,
)  # fmt: skip
STUDENT = Student(
    spec=StudentSpec(
        name="cifar_resnet8", size=8, channels=1, classes=3, parameters=77_600, macs=780_000, preprocessing=GRAY,
        class_names=TEACHER.class_names,
    ),
    steps=30, final_loss=0.4, held_out_accuracy=0.9, held_out_agreement=0.95, budget="7 steps: named",
    targets="cached: on a CPU a live teacher takes longer", images_per_second=321.0,
    candidates=(
        {"name": "cifar_resnet8", "parameters": "77600", "macs": "780000", "verdict": "chosen",
         "trials": "0.510 after 60 steps"},
    ),
)  # fmt: skip
SCORES = Scores(
    shards=("shard-00000",), images=POOL_IMAGES, labelled=60, classes=3, views=("clean",), taps=(), provider="cpu",
    images_per_second=900.0, shard_keys=("0" * 64,), taken_over=0, precision="int8",
    precision_why=Precision(name="int8", why="the int8 copy holds all bars on 1024 images of the pool",
                            trial=Int8Trial(images=1024, speedup=2.1, agreement=0.96, jaccard=0.93)),
)  # fmt: skip
TRAINING_SET = TrainingSet(
    fit="stretch", size=8, channels=1, classes=3, labelled=6, picked=12, held_out=20, parity=18, parity_unpicked=18
)
VERDICTS = Verdicts(
    verdicts=(
        Verdict(hop="torch -> fp32", images=18, agreement=1.0, kl=1e-9, max_error=2e-6, accuracy_before=0.9,
                accuracy_after=0.9, gate="agreement at least 99.9 %", passed=True),
        Verdict(hop="fp32 -> int8", images=18, agreement=0.8, kl=0.3, max_error=0.2, accuracy_before=0.9,
                accuracy_after=0.7, gate="agreement at least 98 %", passed=False, withheld="int8"),
    ),
    latencies=(
        Latency(subject="teacher", batch=1, threads=1, p50_ms=2.0, p90_ms=2.4, runs=50),
        Latency(subject="teacher", batch=64, threads=1, p50_ms=90.0, p90_ms=99.0, runs=20),
        Latency(subject="fp32", batch=64, threads=1, p50_ms=18.0, p90_ms=20.0, runs=20),
        Latency(subject="fp32", batch=1, threads=1, p50_ms=0.5, p90_ms=0.6, runs=50),
    ),
    recommended="fp32", recommendations=(Recommendation(target="cpu", variant="fp32", reason="int8 missed its gate"),),
    teacher_accuracy=0.95, student_accuracy=0.9, student_accuracy_low=0.7,
    student_accuracy_high=0.97, held_out=20, student_agreement=0.95, warnings=("int8 is withheld.",),
)  # fmt: skip


def png(image: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def finished(folder: Path, result: Any) -> Folder:
    """A stage's folder as `stage.execute` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    extra = {"seconds": 1.5, "peak_memory_bytes": 2**27, "versions": {"torch": "2.13.0"}, "engine": "0.1.0"}
    manifest = build_manifest(folder, result, extra)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Folder(path=str(folder), sha256=manifest["digest"])


def write_pool(folder: Path) -> Folder:
    generator = np.random.default_rng(0)
    with tarfile.open(folder / "pool.tar", "w") as tar:
        for number in range(POOL_IMAGES):
            data = png(generator.integers(0, 255, (8, 8), np.uint8))
            entry = tarfile.TarInfo(f"{number:06d}.png")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    file = File(path=str(folder / "pool.tar"), sha256=file_sha256(folder / "pool.tar"))
    out = folder / "pool"
    out.mkdir()
    ingest.run(IngestInputs(name="mixed", tars=(file,)), out, SilentProgress())
    return pool_folder(out)


def write_selection(folder: Path) -> None:
    folder.mkdir()
    score = np.linspace(1.0, 0.0, POOL_IMAGES)
    table = pa.table(
        {
            "key": [f"{n:06d}" for n in range(POOL_IMAGES)],
            "score": score,
            "class": np.arange(POOL_IMAGES) % 3,
            "probability": np.full(POOL_IMAGES, 0.5),
            "weight": np.ones(POOL_IMAGES),
            "picked": np.arange(POOL_IMAGES) < 12,
            "why": ["quota" if n < 12 else HOSTILE for n in range(POOL_IMAGES)],
        }
    )
    pq.write_table(table, folder / "selection.parquet")
    np.save(folder / report.LABELLED_SCORES, np.linspace(0.5, 1.0, 6))


def write_files(folder: Path, files: dict[str, bytes]) -> tuple[str, ...]:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return tuple(files)


def variant(folder: Path, name: str, path: str, form: str = "onnx", target: str = "cpu") -> Variant:
    return Variant(
        name=name, path=path, target=target, format=form, precision=name[:4], size=(folder / path).stat().st_size,
        sha256=file_sha256(folder / path), seconds=1.0, reproducible=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    root = tmp_path_factory.mktemp("stages")
    gathering, distillation, export = root / "gathering", root / "distillation", root / "export"
    gathering.mkdir()
    np.save(gathering / "labelled.images.npy", np.zeros((6, 8, 8, 1), np.uint8))
    np.save(gathering / "labelled.labels.npy", np.array([0, 1, 2, 0, 1, 2]))
    np.save(gathering / "held_out.images.npy", np.zeros((20, 8, 8, 1), np.uint8))
    np.save(gathering / "held_out.labels.npy", np.arange(20) % 3)
    right = np.eye(3, dtype=np.float32)[np.arange(20) % 3]
    np.save(gathering / "held_out.targets.npy", np.stack([right, right], axis=1))
    verified = root / "verification"
    verified.mkdir()
    np.save(verified / report.HELD_OUT_ANSWERS, np.where(np.arange(20) == 7, 0, np.arange(20) % 3))
    np.save(gathering / "parity.images.npy", np.zeros((4, 8, 8, 1), np.uint8))
    curve = [{"step": s, "loss": 1 / s, "learning_rate": 0.1, "held_out_agreement": 0.5} for s in (1.0, 2.0)]
    write_files(
        distillation,
        {
            "student.safetensors": b"weights",
            "student.json": json.dumps(to_json(STUDENT.spec)).encode(),
            "curve.jsonl": "\n".join(json.dumps(row) for row in curve).encode(),
            "events.tfevents": b"events",
            "differences.json": json.dumps(to_json(DIFFERENCES)).encode(),
        },
    )
    write_files(export, {"student.onnx": b"fp32", "student.int8.onnx": b"int8", "s.xml": b"xml", "s.bin": b"weights"})
    write_files(root / "bundling", {"engines/rtx.engine": b"engine", "bundle-rtx.zip": b"zip"})
    variants = Variants(
        variants=(
            variant(export, "fp32", "student.onnx"),
            variant(export, "int8", "student.int8.onnx"),
            replace(
                variant(export, "openvino-fp32", "s.xml", "openvino"), size=10,
                beside=(Companion(path="s.bin", size=7, sha256=file_sha256(export / "s.bin")),),
            ),
        ),
        not_made=(NotMade(name="executorch", reason="the runtime is not installed here; install executorch."),),
    )  # fmt: skip
    bundle = Bundle(
        target="rtx", path="bundle-rtx.zip", device="RTX cards", variants=("fp32",), size=3, sha256="b" * 64
    )
    bundles = Bundles(
        bundles=(bundle,),
        engines=(variant(root / "bundling", "rtx-sm89", "engines/rtx.engine", "tensorrt_rtx", "rtx"),),
        warnings=("rtx-sm89 was not run.",),
    )
    write_selection(root / "selection")
    return ReportInputs(
        intake=finished(root / "intake", TEACHER),
        scoring=finished(root / "scoring", SCORES),
        selection=finished(root / "selection", SELECTION),
        gathering=finished(gathering, TRAINING_SET),
        distillation=finished(distillation, STUDENT),
        export=finished(export, variants),
        verification=finished(verified, VERDICTS),
        bundling=finished(root / "bundling", bundles),
        pool=write_pool(root),
        images=LabelledImages(),
    )


@pytest.fixture(scope="module")
def folder(inputs: ReportInputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    made = report.run(inputs, out, SilentProgress())
    assert sorted(made.artifacts) == sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def data(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def test_withheld_variant_is_not_handed_out(folder: Path) -> None:
    assert (folder / "student.onnx").read_bytes() == b"fp32"
    assert (folder / "engines/rtx.engine").read_bytes() == b"engine"
    assert not (folder / "student.int8.onnx").exists()


def test_a_file_that_needs_another_one_is_handed_out_with_it(folder: Path, page: str, data: dict[str, Any]) -> None:
    assert ((folder / "s.xml").read_bytes(), (folder / "s.bin").read_bytes()) == (b"xml", b"weights")
    assert "belongs to s.xml" in page
    (row,) = (v for v in data["variants"] if v["name"] == "openvino-fp32")
    assert (row["size"], row["beside"][0]["size"]) == (10, 7)


def test_what_could_not_be_made_stands_in_the_table_with_its_reason(page: str, data: dict[str, Any]) -> None:
    assert [row["name"] for row in data["not_made"]] == ["executorch"]
    assert "not made" in page
    assert "install executorch." in page


def test_bundles_are_handed_out_and_named_with_their_devices(folder: Path, page: str, data: dict[str, Any]) -> None:
    assert (folder / "bundle-rtx.zip").read_bytes() == b"zip"
    assert "RTX cards: all that it needs" in page
    assert [(b["target"], b["path"], b["variants"]) for b in data["bundles"]] == [("rtx", "bundle-rtx.zip", ["fp32"])]


def test_artifacts_are_the_stages_files_byte_for_byte(folder: Path, inputs: ReportInputs) -> None:
    for name in report.STUDENT_FILES:
        assert (folder / name).read_bytes() == (Path(inputs.distillation.path) / name).read_bytes()
    selection = (Path(inputs.selection.path) / "selection.parquet").read_bytes()
    assert (folder / "selection.parquet").read_bytes() == selection


def test_samples_are_there_as_data_with_both_answers_to_held_out_images(folder: Path) -> None:
    samples = json.loads((folder / "samples.json").read_text())
    assert [c["name"] for c in samples["classes"]] == list(TEACHER.class_names)
    assert len(samples["classes"][0]["best"]) == 4
    assert len(samples["held_out"]) == 20
    first = samples["held_out"][0]  # where the two differ
    assert (first["label"], first["teacher"], first["student"]) == (HOSTILE, HOSTILE, "0")
    assert first["source"].startswith("data:image/png;base64,")


def test_the_servers_page_reads_what_the_report_wrote(folder: Path) -> None:
    outcome, samples = read_outcome(folder / "report.json"), read_samples(folder / "samples.json")
    assert (outcome.teacher.name, outcome.student.name) == (TEACHER.display_name, STUDENT.spec.name)
    assert [row.picked for row in outcome.classes] == list(SELECTION.class_counts)
    assert {row.name for row in outcome.variants if row.recommended} == {"fp32"}
    assert {row.name for row in outcome.variants if row.timings} >= {"fp32"}
    assert [(t.batch, t.threads, t.milliseconds) for t in outcome.teacher_timings][:1] == [(1, 1, 2.0)]
    assert len(samples.classes) == STUDENT.spec.classes


def test_answers_that_differ_come_first_then_those_that_are_wrong() -> None:
    labels, teacher = np.array([0, 1, 2, 0]), np.array([0, 1, 1, 0])
    assert shown_answers(labels, teacher, np.array([0, 0, 1, 0])) == (1, 2, 0, 3)


def test_the_verification_writes_the_answers_under_the_name_that_the_report_reads() -> None:
    assert report.HELD_OUT_ANSWERS == verification.HELD_OUT_ANSWERS


def test_the_page_says_how_the_student_was_trained_and_where_it_differs(page: str) -> None:
    assert "7 steps: named" in page
    assert "cached: on a CPU" in page
    assert "Where the student differs from the teacher" in page
    assert "KL 1.5 nats" in page
    assert "after 60 steps" in page


def test_the_log_has_each_stage_with_its_warnings(folder: Path, data: dict[str, Any]) -> None:
    lines = (folder / "job.log").read_text().splitlines()
    assert "scoring: 1.5 s, 128 MiB at most" in lines
    assert [line.split(":")[0] for line in lines if "warning" not in line] == list(report_data.STAGE_NAMES)
    warned = [line.partition(": warning: ")[2] for line in lines if "warning" in line]
    assert set(data["warnings"]) <= set(warned)


def test_report_json_has_the_promised_keys(data: dict[str, Any]) -> None:
    promised = {
        "teacher",
        "student",
        "stages",
        "scoring",
        "selection",
        "verdicts",
        "variants",
        "warnings",
        "conditions",
    }
    assert promised <= set(data)
    assert data["stages"]["scoring"] == {
        "seconds": 1.5, "peak_memory_bytes": 2**27, "versions": {"torch": "2.13.0"}
    }  # fmt: skip
    assert list(data["stages"]) == list(report_data.STAGE_NAMES)


def test_report_json_says_what_intake_found(data: dict[str, Any]) -> None:
    assert data["teacher"]["name"] == "teacher<b>.onnx"
    assert data["teacher"]["preprocessing"] == to_json(GRAY)
    assert data["teacher"]["held_out_accuracy"] == 0.95


def test_report_says_in_which_precision_the_pool_was_scored(data: dict[str, Any]) -> None:
    assert data["scoring"] == {
        "provider": "cpu", "precision": "int8", "why": "the int8 copy holds all bars on 1024 images of the pool",
        "trial": {"images": 1024, "speedup": 2.1, "agreement": 0.96, "jaccard": 0.93}, "images_per_second": 900.0,
        "taken_over": 0,
    }  # fmt: skip


def test_student_is_set_beside_its_teacher(data: dict[str, Any]) -> None:
    assert data["student"]["parameter_factor"] == 5.0
    assert data["student"]["speed"] == {
        "subject": "fp32", "batch": 1, "threads": 1, "teacher_ms": 2.0, "student_ms": 0.5, "factor": 4.0
    }  # fmt: skip


def test_variants_say_which_is_recommended_and_which_withheld(data: dict[str, Any]) -> None:
    flags = {v["name"]: (v["recommended"], v["withheld"]) for v in data["variants"]}
    assert flags == {
        "fp32": (True, False), "int8": (False, True), "openvino-fp32": (False, False), "rtx-sm89": (False, False)
    }  # fmt: skip


def test_warnings_of_all_stages_come_in_their_order(data: dict[str, Any]) -> None:
    assert data["warnings"] == [
        "Class 9 has no labelled images.",
        "Few picks.",
        "int8 is withheld.",
        "rtx-sm89 was not run.",
    ]


@pytest.mark.parametrize(
    ("unpicked", "words"),
    [
        (18, "18 pool images that were not picked"),
        (5, "18 pool images, 13 of which it was trained on"),
        (0, "18 pool images, all of which it was trained on"),
    ],
)
def test_card_says_which_pool_images_the_student_was_compared_on(unpicked: int, words: str) -> None:
    assert report_page.parity_words({"parity_images": 18, "parity_unpicked": unpicked}) == words


def test_agreement_on_images_trained_on_is_a_warning() -> None:
    assert report_data.parity_warnings(TRAINING_SET) == ()
    (warning,) = report_data.parity_warnings(replace(TRAINING_SET, parity_unpicked=5))
    assert warning.startswith("13 of the 18 pool images")


def test_conditions_name_machine_and_versions(data: dict[str, Any]) -> None:
    assert data["conditions"]["cores"] >= 1
    assert data["conditions"]["cpu"]
    assert data["conditions"]["versions"] == {"torch": "2.13.0"}


def test_hostile_names_are_escaped_everywhere(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "teacher&lt;b&gt;.onnx" in page


def test_page_needs_nothing_from_outside(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:;")
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(s.startswith(("data:image/", "#")) for s in sources)
    assert not re.search(r"url\((?!#)|@import", page)


def test_page_closes_what_it_opens(page: str) -> None:
    open_tags: list[str] = []

    class Tags(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Tags().feed(page)
    assert open_tags == []


def test_element_ids_are_unique(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 3


def test_page_says_the_result_in_one_sentence(page: str) -> None:
    assert "90.0 % of 20 held-out labelled images rightly, 5.0 points below the teacher" in page
    assert "in 25.0 % of the teacher" in page
    assert "Withheld:</span> int8" in page


def test_headline_names_the_file_that_the_time_is_of(data: dict[str, Any]) -> None:
    fast = {**data["student"], "speed": {**data["student"]["speed"], "subject": "int8-cpu"}}
    said = report_page.headline({**data, "student": fast})
    assert said.endswith("in 25.0 % of the teacher's time on this machine, as its int8-cpu file.")


def test_page_says_what_the_agreement_on_the_pool_rests_on(page: str) -> None:
    assert "95.0 % on 18 pool images that were not picked" in page


def test_engine_without_a_verdict_says_that_it_was_not_run(page: str, data: dict[str, Any]) -> None:
    rows = re.findall(r"<tr><td><code>([^<]+)</code>.*?<span[^>]*>([^<]*)</span></td></tr>", page)
    assert dict(rows) == {
        "student.onnx": "recommended", "s.xml": "not run here", "s.bin": "not run here",
        "engines/rtx.engine": "not run here",
    }  # fmt: skip
    assert [v["name"] for v in data["variants"] if v["verified"]] == ["fp32", "int8"]


def test_page_says_which_file_to_take_for_a_target_and_why(page: str) -> None:
    assert "For the target <b>cpu</b> take <b>fp32</b>: int8 missed its gate." in page


def test_table_of_files_has_a_line_for_each_timing_and_says_what_was_not_measured(page: str) -> None:
    table = page.partition("<h2>What each file gives</h2>")[2].partition("</table>")[0]
    assert re.findall(r"<b>([^<]+)</b>", table) == ["fp32", "int8", "openvino-fp32", "rtx-sm89", "executorch"]
    assert table.count("not measured: no such device here") == 3
    assert '<td class="n">2,000</td>' in table  # images a second: one in 0.5 ms
    assert table.count("<tr>") == 1 + 2 + 1 + 1 + 1 + 1


def test_page_shows_how_reliable_the_score_is_and_what_the_pool_lacks(page: str) -> None:
    assert 'aria-label="Reliability of the believed probabilities"' in page
    assert "labelled (6)" in page
    assert "7 images that look like a better one, 2 that are, or look like, those to exclude" in page
    assert "<code>&lt;b&gt;/000003</code>, taken for $x, this class at 25.0 %" in page


def test_a_plan_is_set_beside_what_came_of_it(inputs: ReportInputs, tmp_path: Path) -> None:
    plan = PlanEstimates(
        seconds={"intake": 9.0, "distillation": 77.7}, memory_bytes={"intake": 2**20}, steps=25, picked=11,
        pool_images=POOL_IMAGES, score="pu", prior=0.2, precision=None, class_counts=(8, 2, 2),
    )  # fmt: skip
    report.run(replace(inputs, plan=plan), tmp_path, SilentProgress())
    found = json.loads((tmp_path / "report.json").read_text())["plan"]
    assert found["seconds"]["distillation"] == 77.7
    assert {"name": "training steps", "planned": 25, "came": 30} in found["figures"]
    assert {"name": "prior", "planned": 0.2, "came": 0.25} in found["figures"]
    assert found["moved"] == pytest.approx(1 / 3)  # of twelve picks, four a class came
    page = (tmp_path / "report.html").read_text()
    assert "77.7" in page
    assert '<td class="words">prior</td><td class="n">0.200</td><td class="n">0.250</td>' in page


def test_a_job_without_a_plan_has_none_to_compare(page: str, data: dict[str, Any]) -> None:
    assert data["plan"] is None
    assert "what came of it" not in page


def test_page_shows_pictures_of_each_class(page: str) -> None:
    # A class: 2 labelled, 4 picks (all of them "best"), none between, 3 left out.
    # And one image on which student and teacher differ.
    assert page.count("<img ") == 3 * (2 + 4 + 3) + 1
    assert page.count(">lowest, left out<") == 3


def test_repeated_run_over_leftovers_gives_the_same_page(inputs: ReportInputs, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("half a page")
    (tmp_path / "student.onnx").write_bytes(b"half")
    report.run(inputs, tmp_path, SilentProgress())
    assert (tmp_path / "report.html").read_text() == (folder / "report.html").read_text()
    assert (tmp_path / "student.onnx").read_bytes() == b"fp32"


def test_shown_classes_span_from_most_to_least_picked() -> None:
    counts = [5] * 98 + [900, 0]
    shown = shown_classes(counts)
    assert len(shown) == 12
    assert {98, 99} <= set(shown)
    assert shown_classes([1, 2, 3]) == (0, 1, 2)


def test_class_rows_do_not_show_an_image_twice() -> None:
    rows = SelectionRows(
        score=np.arange(20.0), class_index=np.zeros(20, np.int64), probability=np.ones(20),
        picked=np.arange(20) >= 14, why=[""] * 20,
    )  # fmt: skip
    chosen = class_rows(rows, 0)
    assert chosen.best == (19, 18, 17, 16)
    assert chosen.borderline == (15, 14)
    assert chosen.rejected == (2, 1, 0)
    assert class_rows(rows, 1).best == ()


@pytest.mark.parametrize(("side", "kind"), [(8, "PNG"), (200, "JPEG")])
def test_thumbnail_is_small_and_carries_pixels_only(side: int, kind: str) -> None:
    source = thumbnail(np.full((side, side, 3), 120, np.uint8))
    decoded = Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2])))
    assert decoded.format == kind
    assert max(decoded.size) == min(side, 96)
    assert not decoded.getexif()


def test_speed_compares_equal_batches_and_threads_only() -> None:
    teacher = Latency(subject="teacher", batch=1, threads=1, p50_ms=4.0, p90_ms=5.0, runs=9)
    student = Latency(subject="fp32", batch=8, threads=1, p50_ms=4.0, p90_ms=5.0, runs=9)
    assert report_data.speed([teacher, student], "fp32") is None
    compared = report_data.speed([teacher, student, replace(teacher, batch=8, p50_ms=16.0)], "fp32")
    assert compared is not None
    assert (compared.teacher_ms, compared.student_ms, compared.factor) == (2.0, 0.5, 4.0)


def test_speed_of_an_engine_not_timed_here_is_the_first_variant_that_was() -> None:
    rows = [Latency(subject=s, batch=1, threads=1, p50_ms=1.0, p90_ms=1.0, runs=9) for s in ("teacher", "fp32")]
    compared = report_data.speed(rows, "rtx-sm89")
    assert compared is not None
    assert compared.subject == "fp32"


@pytest.mark.parametrize(
    ("size", "text"), [(1023, "1,023 bytes"), (1536, "1.5 KiB"), (3 * 2**20, "3.0 MiB"), (2**32, "4.0 GiB")]
)  # fmt: skip
def test_sizes_come_in_the_unit_that_fits(size: int, text: str) -> None:
    assert report_page.byte_size(size) == text


def test_prior_sentence_tells_given_from_estimated() -> None:
    chosen = to_json(SELECTION)
    assert "estimated: 25.0 %" in report_page.prior_sentence(chosen)
    assert "as given: 25.0 %" in report_page.prior_sentence(chosen | {"prior_given": True})
    assert "not estimated" in report_page.prior_sentence(chosen | {"prior": None})


def test_prior_sentence_says_how_sure_it_is_and_what_it_makes_of_the_picks() -> None:
    estimate = {"precision": 0.9, "precision_low": 0.85, "precision_high": 0.93, "recall": 0.4}
    chosen = {"prior": 0.2, "prior_given": False, "prior_low": 0.18, "prior_high": 0.23, "expected": estimate}
    text = report_page.prior_sentence(chosen)
    assert "95 % interval 18.0 % to 23.0 %" in text
    assert "90.0 % are expected to be of it (85.0 % to 93.0 %); they are 40.0 % of all" in text


def test_engine_names_the_devices_it_was_built_for() -> None:
    words = report_page.device_words("rtx-sm86", "rtx", "tensorrt_rtx", {"capabilities": "SM86,SM89"})
    assert words == "NVIDIA GPUs with TensorRT for RTX (SM86, SM89)"
    assert report_page.device_words("npu", "npu", "blob", {}) == "target npu"
