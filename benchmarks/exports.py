"""What does each exported file give? Students briefly distilled on the spot, then every precision of each.

`python -m benchmarks.exports --data DIR --out F.json`; DIR's neighbour `teachers` holds the teacher. `--quick` takes
one small student and asks for no bar of resnet18; `--students` takes some of them. `--keep FOLDER` leaves the files and
the images for `benchmarks.int8_peers`. Speeds are images per second of CPU time, which a busy machine bends
less than time on the clock.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.conditions import conditions
from benchmarks.export_students import Recipe, Trained, ask_teacher, measured_pixels, sized, take_in, train
from benchmarks.kept_students import keep
from benchmarks.table import bar, print_bars, print_table, write_json
from exporters import trt_parsing
from exporters.engine_builder import EngineRequest, build_here
from exporters.errors import ExportError
from pu_engine import export, verification
from pu_engine.jsonform import to_json
from pu_engine.progress import SilentProgress
from pu_engine.results import build_manifest, write_atomic
from pu_engine.student.files import load_student
from pu_engine.types import ExportInputs, ExportOptions, Folder, Variants, Verdicts, VerificationInputs
from pu_engine.variants.hops import File
from pu_engine.variants.onnx_variants import FILES
from pu_engine.variants.variant_rows import Timing, timing

RECIPES = (
    Recipe(name="resnet18", size=32, steps=50),
    Recipe(name="mobilenetv4_conv_small", size=64, steps=250),
    Recipe(name="fastvit_t8", size=64, steps=120),
)
QUICK = (Recipe(name="cifar_resnet8", size=32, steps=40),)
PICKED, QUICK_PICKED = 4000, 600
TEST_PER_CLASS, QUICK_TEST_PER_CLASS = 100, 20
CAPABILITIES = ("SM86", "SM89", "SM120")
TRT_FILES = ("fp32", "fp16", "int8-trt")
SPEED_BATCH, SPEED_SECONDS, THREADS = 64, 2.0, (1, 2)
VNNI = ("avx512_vnni", "avx_vnni")
LOADING = """
import sys, onnxruntime as ort
options = ort.SessionOptions()
options.log_severity_level = 2
ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--students", nargs="+", choices=[recipe.name for recipe in RECIPES])
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a folder a student, for benchmarks.int8_peers")
    options = parser.parse_args()
    recipes = QUICK if options.quick else [r for r in RECIPES if r.name in (options.students or [r.name])]
    started = time.monotonic()
    facts = conditions(seed=0, vnni=has_vnni(), recipes=[to_json(recipe) for recipe in recipes], quick=options.quick)
    rows: list[dict[str, Any]] = []
    chosen: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="exports") as folder:
        work = Path(folder)
        intake = take_in(options.data, options.data.parent / "teachers", work / "intake")
        parts = ask_teacher(intake, options.data, QUICK_PICKED if options.quick else PICKED)
        images, labels = measured_pixels(options.data, QUICK_TEST_PER_CLASS if options.quick else TEST_PER_CLASS)
        for recipe in recipes:
            trained = train(recipe, intake, parts, work / recipe.name)
            kept = options.keep and options.keep / recipe.name
            found, recommended = measure(trained, images, labels, work / recipe.name, kept)
            rows += found
            chosen += recommended
            print_table(f"{recipe.name} at {recipe.size} pixels", COLUMNS, [shown(row) for row in found])
            bars = all_bars(rows, facts["vnni"])
            # After each student, so that a run that is stopped leaves the ones before.
            write_json(
                options.out,
                {
                    "conditions": facts, "rows": rows, "recommendations": chosen, "bars": bars,
                    "seconds": time.monotonic() - started,
                },
            )  # fmt: skip
    print_bars(bars)


def measure(
    trained: Trained, images: NDArray[np.uint8], labels: NDArray[np.int64], work: Path, kept: Path | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Export and verify as in a job, then measure each file on the test images. `kept`: where others find them."""
    exported, verdicts = export_and_verify(trained, work)
    spec, _ = load_student(Path(trained.distillation.path))
    pixels = sized(images, spec.size)
    folder = work / "export"
    whole = next(v.size for v in exported.variants if v.name == "fp32")
    hops = {v.hop.rpartition(" -> ")[2]: v for v in verdicts.verdicts}
    if kept:
        passed = {name: hop.passed for name, hop in hops.items()}
        keep(trained, exported, passed, pixels, labels, export=folder, folder=kept)
    rows = []
    for variant in (v for v in exported.variants if v.format == "onnx"):
        hop = hops[variant.name]
        file = verification.open_file(folder, variant, spec, 1)
        rows.append({
            "student": trained.recipe.name, "variant": variant.name, "bytes": variant.size,
            "size_share": variant.size / whole, "parity": hop.max_error, "agreement": hop.agreement,
            "passed": hop.passed, "accuracy": float((file.run(pixels, SPEED_BATCH).argmax(axis=1) == labels).mean()),
            "test_images": len(labels), "details": dict(variant.details),
            "images_per_cpu_second": {str(n): cpu_speed(folder, variant, spec, n) for n in THREADS},
            "timings": [to_json(t) for t in timings_of(verdicts, variant.name)],
            "warnings_at_load": warnings_at_load(folder / variant.path), **for_tensorrt(folder, variant.name),
        })  # fmt: skip
    chosen = [{"student": trained.recipe.name, **to_json(r)} for r in verdicts.recommendations]
    return rows, chosen


def export_and_verify(trained: Trained, work: Path) -> tuple[Variants, Verdicts]:
    """Both stages, with every ONNX file and no engine."""
    out = work / "export"
    out.mkdir()
    options = ExportOptions(targets=("cpu",), variants=tuple(FILES))
    inputs = ExportInputs(distillation=trained.distillation, gathering=trained.gathering, export=options)
    exported = export.run(inputs, out, SilentProgress())
    manifest = build_manifest(out, exported, {})
    write_atomic(out / "manifest.json", json.dumps(manifest).encode())
    checked = VerificationInputs(
        intake=trained.intake, gathering=trained.gathering, distillation=trained.distillation,
        export=Folder(path=str(out), sha256=manifest["digest"]),
    )  # fmt: skip
    return exported, verification.run(checked, work, SilentProgress())


def cpu_speed(folder: Path, variant: Any, spec: Any, threads: int) -> float:
    """Images per second of CPU time, all threads' together, at SPEED_BATCH."""
    file: File = verification.open_file(folder, variant, spec, threads)
    shape = (SPEED_BATCH, spec.size, spec.size, spec.channels)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    tensor = file.feed(pixels)
    file.infer(tensor)
    started, done = time.process_time(), 0
    while time.process_time() - started < SPEED_SECONDS:
        file.infer(tensor)
        done += SPEED_BATCH
    return done / (time.process_time() - started)


def timings_of(verdicts: Verdicts, name: str) -> list[Timing]:
    """What the job's own verification timed."""
    return [timing(to_json(row)) for row in verdicts.latencies if row.subject == name]


def warnings_at_load(path: Path) -> int:
    """Lines that onnxruntime writes when a fresh process loads the file."""
    done = subprocess.run([sys.executable, "-c", LOADING, str(path)], capture_output=True, text=True, check=True)
    return len((done.stdout + done.stderr).splitlines())


def for_tensorrt(folder: Path, name: str) -> dict[str, Any]:
    """Whether TensorRT-RTX parses a file made for it, and the engine's bytes for each capability."""
    if name not in TRT_FILES:
        return {"parses": None, "engine_bytes": {}}
    return engines_of(folder / FILES[name], folder / "probe.engine", CAPABILITIES)


def engines_of(path: Path, scratch: Path, capabilities: Sequence[str]) -> dict[str, Any]:
    """Whether TensorRT-RTX parses a file, and the bytes of an engine for each capability, or why there is none."""
    said = trt_parsing.parse(path)
    if said.unchecked:
        return {"parses": said.unchecked, "engine_bytes": {}}
    sizes: dict[str, Any] = {}
    for capability in capabilities:
        request = EngineRequest(onnx=str(path), builder="tensorrt_rtx", capabilities=(capability,), batches=(1, 8, 64))
        try:
            sizes[capability] = build_here(request, scratch, lambda *_: True).size
        except ExportError as error:
            sizes[capability] = error.message
    return {"parses": not said.refused, "engine_bytes": sizes}


def all_bars(rows: Sequence[Mapping[str, Any]], vnni: bool) -> list[dict[str, Any]]:
    """The bars asked of the exporters; those of resnet18 where it was made."""
    table = {(row["student"], row["variant"]): row for row in rows}
    students = list(dict.fromkeys(row["student"] for row in rows))
    exact = max(table[s, "fp32"]["parity"] for s in students)
    half = min(table[s, "fp16"]["agreement"] for s in students)
    lost = [
        table[s, "fp32"]["accuracy"] - table[s, "int8-cpu"]["accuracy"]
        for s in students
        if table[s, "int8-cpu"]["passed"]
    ]
    tensorrt = [r for r in rows if r["variant"] in TRT_FILES]
    refused = sum(
        r["parses"] is not True or any(isinstance(v, str) for v in r["engine_bytes"].values()) for r in tensorrt
    )
    bars = [
        bar("fp32 relative error to torch", exact, 1e-4, at_least=False),
        bar("fp16 argmax agreement with fp32", half, 0.995, at_least=True),
        bar("files for TensorRT that do not parse and build", float(refused), 0.0, at_least=False),
        bar("lines onnxruntime warns at load", float(sum(r["warnings_at_load"] for r in rows)), 0.0, at_least=False),
    ]
    if lost:
        bars.append(bar("points that int8-cpu files that passed lose, at most", 100 * max(lost), 0.6, at_least=False))
    if "resnet18" in students:
        share = max(table["resnet18", name]["size_share"] for name in ("int8-cpu", "int8-trt"))
        bars.append(bar("resnet18: int8 bytes of fp32's", share, 0.30, at_least=False))
    if "resnet18" in students and vnni:
        speeds = [table["resnet18", name]["images_per_cpu_second"]["1"] for name in ("fp32", "int8-cpu")]
        bars.append(bar("resnet18: int8-cpu throughput over fp32's", speeds[1] / speeds[0], 2.5, at_least=True))
    return bars


COLUMNS = ("file", "KiB", "of fp32", "agrees", "accuracy", "img/CPU-s", "engine KiB", "gate")


def shown(row: Mapping[str, Any]) -> list[str]:
    """A row of the table on the terminal."""
    engines = [v for v in row["engine_bytes"].values() if isinstance(v, int)]
    return [
        row["variant"], f"{row['bytes'] / 1024:,.0f}", f"{row['size_share']:.1%}", f"{row['agreement']:.1%}",
        f"{row['accuracy']:.1%}", f"{row['images_per_cpu_second']['1']:,.0f}",
        f"{max(engines) / 1024:,.0f}" if engines else "", "passed" if row["passed"] else "withheld",
    ]  # fmt: skip


def has_vnni() -> bool:
    """Whether this CPU multiplies 8-bit integers in one instruction, which int8's speed rests on."""
    info = Path("/proc/cpuinfo")
    return info.exists() and any(flag in info.read_text(errors="replace").split() for flag in VNNI)


if __name__ == "__main__":
    main()
