"""Our int8 beside that of onnxruntime's quantiser, NNCF and ModelOpt: the same fp32 files, calibration and test images.

`python -m benchmarks.int8_peers --kept FOLDER --out F.json`, FOLDER as `benchmarks.exports --keep` leaves it; or
`make bench-int8-peers`, which makes it and the other tools' environments. Every ONNX file runs here in the same ONNX
Runtime with the same settings, NNCF's IR in OpenVINO, where fp32 and int8-cpu are measured for comparison too. Speeds
are those of the least disturbed of interleaved rounds, with the median beside it in F.json; throughput counts CPU time,
which a busy machine bends less than time on the clock.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

# Read at import, and by the tools' programs too; the Linux wheels otherwise write a device id.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.conditions import conditions
from benchmarks.exports import engines_of, has_vnni
from benchmarks.int8_peers_tools import PEERS, Made, calibrated_again, python_of, quantise
from benchmarks.kept_students import Inputs, KeptStudent, inputs_of, kept_students
from benchmarks.table import bar, print_bars, print_table, write_json
from exporters import openvino_ir
from exporters.runtime_files import Run
from pu_engine.variants.agreement import accuracy
from pu_engine.variants.runtime_variants import open_run
from pu_engine.variants.timings import usable_threads

OURS = ("fp32", "int8-cpu", "int8-trt")
IN_OPENVINO = ("fp32", "int8-cpu")  # ours that OpenVINO runs beside NNCF's IR
BATCH, ROUNDS, ROUND_SECONDS, ROUND_CALLS = 64, 5, 0.5, 10
CAPABILITIES = ("SM89",)
SLOWER, BEHIND_POINTS = 0.95, 0.6  # timings differ by some 5 % from run to run; 0.6 points is int8's own budget
INT8_CONVOLUTIONS = ("QLinearConv", "ConvInteger")
FLOAT_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file in the runtime that it is measured in."""

    name: str
    runtime: str
    made: Made


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8_peers", description=__doc__)
    parser.add_argument("--kept", type=Path, required=True, help="what benchmarks.exports --keep left")
    parser.add_argument("--students", nargs="+", help="some of those that are there")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    students = chosen(kept_students(options.kept), options.students, options.kept)
    for peer in PEERS:
        python_of(peer)
    if openvino_ir.missing():
        raise SystemExit(f"NNCF's IR needs OpenVINO here: pip install '{openvino_ir.missing()}', or `make setup`.")
    started = time.monotonic()
    facts = conditions(vnni=has_vnni(), batch=BATCH, rounds=ROUNDS)
    rows: list[dict[str, Any]] = []
    for student in students:
        with tempfile.TemporaryDirectory(prefix="int8-peers") as work:
            found = compare(student, options.kept / student.name, Path(work))
        rows += found
        title = f"{student.name} at {student.size} pixels"
        print_table(f"{title}: what int8 keeps", KEPT_COLUMNS, [kept_cells(row) for row in found])
        print_table(f"{title}: what it takes", SPEED_COLUMNS, [speed_cells(row) for row in found])
        bars = all_bars(rows)
        # After each student, so that a run that is stopped leaves the ones before.
        write_json(
            options.out, {"conditions": facts, "rows": rows, "bars": bars, "seconds": time.monotonic() - started}
        )
    print_bars(bars)


def chosen(found: Mapping[str, KeptStudent], asked: Sequence[str] | None, folder: Path) -> list[KeptStudent]:
    """The students to compare.

    Raises:
        SystemExit: one is not in the folder, or none is; the message says what makes them.
    """
    missing = [name for name in asked or () if name not in found]
    if missing or not found:
        raise SystemExit(
            f"{folder} has no {' or '.join(missing) or 'student'}: `python -m benchmarks.exports --data DIR --keep "
            f"{folder} --out F.json` leaves some there."
        )
    return [found[name] for name in asked or found]


def compare(student: KeptStudent, folder: Path, work: Path) -> list[dict[str, Any]]:
    """A row for each file of a student, ours first."""
    inputs = inputs_of(folder)
    source = folder / student.files["fp32"].path
    entries = [Entry(name=name, runtime="onnx", made=ours(student, folder, inputs, name)) for name in made_of(student)]
    entries += [Entry(name=e.name, runtime="openvino", made=e.made) for e in entries if e.name in IN_OPENVINO]
    entries += [
        Entry(name=peer.name, runtime=peer.runtime, made=quantise(peer, source, folder / "calibration.npy", work))
        for peer in PEERS
    ]
    speeds = {threads: speeds_of(entries, inputs, threads) for threads in usable_threads()}
    before = outputs_of(entries[0], inputs)
    rows = []
    for index, entry in enumerate(entries):
        kept = student.files.get(entry.name)
        rows.append({
            "student": student.name, "file": entry.name, "runtime": entry.runtime, "bytes": entry.made.bytes(),
            "size_share": entry.made.bytes() / entries[0].made.bytes(), **kept_of_fp32(entry, inputs, before),
            "operators": operators_of(entry.made.path) if entry.runtime == "onnx" else {},
            **({} if kept is None else {"passed": kept.passed, "details": dict(kept.details)}),
            **{name: {str(n): speeds[n][index][name] for n in speeds} for name in SPEEDS},
            "seconds": entry.made.seconds, "cpu_seconds": entry.made.cpu_seconds, "versions": entry.made.versions,
            **for_tensorrt(entry, work),
        })  # fmt: skip
    return rows


def made_of(student: KeptStudent) -> list[str]:
    """Our files of a student; one that could not be made is not there."""
    return [name for name in OURS if name in student.files]


def ours(student: KeptStudent, folder: Path, inputs: Inputs, name: str) -> Made:
    """A file that the export stage made, with the seconds that its calibration takes here."""
    path = folder / student.files[name].path
    if name == "fp32":
        return Made(path=path, seconds=0.0, cpu_seconds=0.0)
    took, cpu = calibrated_again(folder / student.files["fp32"].path, inputs, name)
    return Made(path=path, seconds=took, cpu_seconds=cpu)


def outputs_of(entry: Entry, inputs: Inputs) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Logits [n, K] of the compared images, and of the measured ones."""
    run = open_run(entry.made.path, entry.runtime, 1)
    compared, measured = (
        np.concatenate([run(np.asarray(images[start : start + BATCH])) for start in range(0, len(images), BATCH)])
        for images in (inputs.compared, inputs.measured)
    )
    return compared, measured


def kept_of_fp32(
    entry: Entry, inputs: Inputs, before: tuple[NDArray[np.float32], NDArray[np.float32]]
) -> dict[str, Any]:
    """Agreement with fp32 on both sets of images; on test images the logits' error too, and the accuracy."""
    compared, measured = outputs_of(entry, inputs)
    return {
        "agreement": same_class(before[0], compared), "compared_images": len(compared),
        "test_agreement": same_class(before[1], measured), "test_error": logit_error(before[1], measured),
        "accuracy": accuracy(measured, inputs.labels), "test_images": len(measured),
    }  # fmt: skip


def same_class(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Share of images [n, K] with the same largest logit.

    Of equal logits the first counts: quantised ones have 256 values and many ties, which an agreement that lets ties
    pass would count for them.
    """
    return float((before.argmax(axis=1) == after.argmax(axis=1)).mean())


def logit_error(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Root mean square of the differences of logits [n, K], relative to the standard deviation of `before`."""
    return float(np.sqrt(np.square(after - before).mean()) / before.std())


SPEEDS = ("images_per_cpu_second", "latency_ms")


def speeds_of(entries: Sequence[Entry], inputs: Inputs, threads: int) -> list[dict[str, dict[str, float]]]:
    """Throughput at BATCH and latency of one image of each file, the files by turns."""
    runs = [open_run(entry.made.path, entry.runtime, threads) for entry in entries]
    many, one = np.array(inputs.measured[:BATCH]), np.array(inputs.measured[:1])
    for run in runs:
        run(many)
        run(one)
    throughputs: list[list[float]] = [[] for _ in runs]
    latencies: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for index, run in enumerate(runs):
            throughputs[index].append(throughput(run, many))
            latencies[index] += [1000 * seconds(lambda run=run: run(one)) for _ in range(ROUND_CALLS)]  # type: ignore[misc]
    return [
        {"images_per_cpu_second": spread(t), "latency_ms": spread(ms)}
        for t, ms in zip(throughputs, latencies, strict=True)
    ]


def throughput(run: Run, images: NDArray[np.float32]) -> float:
    """Images per second of CPU time, all threads' together."""
    started, done = time.process_time(), 0
    while time.process_time() - started < ROUND_SECONDS:
        run(images)
        done += len(images)
    return done / (time.process_time() - started)


def seconds(call: Callable[[], object]) -> float:
    """What a call takes on the clock."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": median(values), "least": min(values), "most": max(values)}


def operators_of(path: Path) -> dict[str, int]:
    """How many nodes of each operator ONNX Runtime runs, its optimisations done."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())


def for_tensorrt(entry: Entry, work: Path) -> dict[str, Any]:
    """Whether TensorRT-RTX parses and builds a file; OpenVINO's it can't read."""
    if entry.runtime != "onnx":
        return {"parses": None, "engine_bytes": {}}
    return engines_of(entry.made.path, work / "probe.engine", CAPABILITIES)


def all_bars(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What our files must not be behind in, for each student whose file passed its gates."""
    bars = []
    for student in dict.fromkeys(row["student"] for row in rows):
        own = {r["file"]: r for r in rows if r["student"] == student and r["runtime"] == "onnx"}
        others = [row for name, row in own.items() if name not in OURS]
        best = max(row["test_agreement"] for row in others)
        fastest = max(row["images_per_cpu_second"]["1"]["most"] for row in others)
        passed = [name for name in OURS if name in own and own[name]["passed"]]
        if "int8-cpu" in passed:
            speed = own["int8-cpu"]["images_per_cpu_second"]["1"]["most"]
            name = f"{student}: int8-cpu throughput over the fastest other in ONNX Runtime"
            bars.append(bar(name, speed / fastest, SLOWER, at_least=True))
        for file in (name for name in passed if name != "fp32"):
            behind = 100 * (best - own[file]["test_agreement"])
            name = f"{student}: points of agreement that {file} is behind the best other"
            bars.append(bar(name, behind, BEHIND_POINTS, at_least=False))
    return bars


KEPT_COLUMNS = ("file", "KiB", "of fp32", "agrees", "on test", "error", "accuracy")
SPEED_COLUMNS = ("file", "int8 convs", "img/CPU-s 1, 2", "ms 1, 2", "made CPU-s", "engine")


def kept_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the first table: agreement with fp32 on the gates' images; on test images, with the logits' error."""
    return [
        label(row), f"{row['bytes'] / 1024:,.0f}", f"{row['size_share']:.1%}", f"{row['agreement']:.1%}",
        f"{row['test_agreement']:.1%}", f"{row['test_error']:.2%}", f"{row['accuracy']:.1%}",
    ]  # fmt: skip


def speed_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the second table: the best round with one thread and with two, and the size of TensorRT-RTX's engine."""
    return [
        label(row), convolutions(row["operators"]),
        ", ".join(f"{v['most']:,.0f}" for v in row["images_per_cpu_second"].values()),
        ", ".join(f"{v['least']:.2f}" for v in row["latency_ms"].values()), f"{row['cpu_seconds']:.1f}", engine(row),
    ]  # fmt: skip


def label(row: Mapping[str, Any]) -> str:
    """A file's name, with the runtime where it is not ONNX Runtime."""
    runtime = " in OpenVINO" if row["runtime"] == "openvino" else ""
    return f"{row['file']}{runtime}{'' if row.get('passed', True) else ', withheld'}"


def convolutions(operators: Mapping[str, int]) -> str:
    """How many convolutions ONNX Runtime computes in int8, of how many; "" where that is not known."""
    int8, whole = (sum(operators.get(name, 0) for name in kinds) for kinds in (INT8_CONVOLUTIONS, FLOAT_CONVOLUTIONS))
    return f"{int8} of {int8 + whole}" if operators else ""


def engine(row: Mapping[str, Any]) -> str:
    """An engine's size, or why there is none."""
    sizes = list(row["engine_bytes"].values())
    if row["parses"] is None:
        return ""
    if row["parses"] is not True:
        return "refused" if row["parses"] is False else str(row["parses"])
    return f"{sizes[0] / 1024:,.0f} KiB" if isinstance(sizes[0], int) else "no engine"


if __name__ == "__main__":
    main()
