"""Which teachers have a torch twin? `python -m benchmarks.twin --teachers DIR --data DIR --out F.json`.

Every model of the teachers' `index.json` is brought into its canonical form with the documented convention, read as a
torch module, and compared with onnxruntime on its own labelled images (noise where it has none). Times are medians of
whole batches, both with the same threads.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.conditions import conditions
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine.errors import EngineError
from pu_engine.guard import static_guard
from pu_engine.imaging.preprocessing import model_input
from pu_engine.runtime import forward
from pu_engine.teacher import canonicalisation, class_columns, graph_surgery
from pu_engine.teacher.canonicalisation import Canonical
from pu_engine.twin.proof import prove, torch_threads
from pu_engine.twin.torch_twin import Twin, load
from pu_engine.types import Preprocessing

SEED = 0
IMAGES, TIMED_BATCH, TIMED_RUNS = 200, 16, 5
LAYOUTS, COLOURS = {"flat features": "flat"}, {"gray": "GRAY", None: "GRAY"}
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int8)": "int8"}
CIFAR = "cifar10-test.tar.gz"
EMPTY: Mapping[str, Any] = {
    "twin": False, "quantised": False, "operators": [], "max_error": None, "agreement": None, "onnxruntime_ms": None,
    "forward_ms": None, "forward_backward_ms": None,
}  # fmt: skip
DIGITS_TESTED = 1198  # the digits before this one taught the teachers


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the table, write the rows; 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teachers", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    index = json.loads((options.teachers / "index.json").read_text())["models"]
    start = conditions(seed=SEED, threads=options.threads, batch=TIMED_BATCH)
    rows = [measured(entry, options.teachers, options.data, options.threads) for entry in index]
    bars = verdicts(rows)
    show(rows)
    print_bars(bars)
    write_json(options.out, {"conditions": start, "rows": rows, "bars": bars})
    return 0 if all(row["holds"] for row in bars) else 1


def measured(entry: Mapping[str, Any], teachers: Path, data: Path, threads: int) -> dict[str, Any]:
    """One row: whether the teacher has a twin, how near it is, and how fast."""
    convention = preprocessing(entry)
    try:
        canonical = canonical_form(entry, teachers, convention, threads)
    except EngineError as error:
        return dict(EMPTY) | {"model": entry["file"], "reason": f"intake refuses it: {error.message}"}
    values = model_input(images(entry, data, convention), convention)
    session = forward.stranger_session(canonical.tapped, threads)
    logits = forward.run_rows(session, values, canonical.batch)[0]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        report = prove(
            Path(folder), canonical.tapped, values, logits, macs=canonical.macs, batch=canonical.batch, threads=threads
        )
        seconds = time.perf_counter() - started
        batch = values[:TIMED_BATCH]
        twin = load(Path(folder)) if report.available else None
        plain = forward.stranger_session(canonical.model, threads)
        theirs = median_ms(lambda: forward.run_rows(plain, batch, canonical.batch))
        with torch_threads(threads):
            ours = None if twin is None else median_ms(lambda: run(twin, batch))
            slope = None if twin is None else median_ms(lambda: learn(twin, batch))
    return {
        "model": entry["file"],
        "dataset": entry["dataset"] or "noise",
        "operators": sorted({node.op_type for node in canonical.model.graph.node}),
        "nodes": len(canonical.model.graph.node),
        "steps": None if twin is None else len(twin.structure.steps),
        "parameters": report.parameters,
        "twin": report.available,
        "reason": report.reason,
        "quantised": report.quantised,
        "images": report.images,
        "max_error": report.max_error,
        "agreement": report.agreement,
        "proof_s": round(seconds, 3),
        "onnxruntime_ms": theirs,
        "forward_ms": ours,
        "forward_backward_ms": slope,
    }


def preprocessing(entry: Mapping[str, Any]) -> Preprocessing:
    """The documented convention."""
    layout = LAYOUTS.get(entry["layout"], entry["layout"])
    (image,) = [item for item in entry["inputs"] if item["name"] == entry["image_input"]]
    height, width = entry["image_size"] if layout != "flat" else (8, 8)
    scaling = entry["scaling"]
    return Preprocessing(
        layout=layout,
        channels=COLOURS.get(entry["colour_order"], entry["colour_order"]) if layout != "flat" else "GRAY",
        scale=1 / scaling["div"],
        mean=tuple(scaling["mean"]),
        std=tuple(scaling["std"]),
        dtype=DTYPES[image["dtype"]],
        height=height,
        width=width,
    )


def canonical_form(entry: Mapping[str, Any], teachers: Path, convention: Preprocessing, threads: int) -> Canonical:
    """Guarded and canonical, as intake makes it."""
    blobs = {row["file"]: (teachers / row["file"]).read_bytes() for row in entry["extra_files"]}
    model = static_guard.vet((teachers / entry["file"]).read_bytes(), blobs)
    graph_surgery.hoist_constants(model)
    model = class_columns.joined(model)
    classes = len(entry["classes"] or ()) + entry["label_offset"]
    return canonicalisation.canonicalise(model, convention, labels=classes, stated=classes, seed=SEED, threads=threads)


def images(entry: Mapping[str, Any], data: Path, convention: Preprocessing) -> NDArray[np.uint8]:
    """[N, H, W, C] uint8 of the entry's own data, resized as the index says; noise where it has none."""
    size = (convention.width, convention.height)
    gray = convention.channels == "GRAY"
    if entry["dataset"] is None:
        shape = (IMAGES, convention.height, convention.width, 1 if gray else 3)
        return np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)
    if entry["dataset"] == "digits":
        from sklearn.datasets import load_digits

        found: NDArray[np.uint8] = load_digits().images[DIGITS_TESTED : DIGITS_TESTED + IMAGES].astype(np.uint8)
        return found[..., None]
    opened = cifar(data) if entry["dataset"] == "cifar10-jpeg" else folder_images(data / entry["dataset"])
    rows = [
        np.asarray(image.convert("L" if gray else "RGB").resize(size, Image.Resampling.BILINEAR)) for image in opened
    ]
    stacked = np.stack(rows)
    return stacked[..., None] if gray else stacked


def cifar(data: Path) -> list[Image.Image]:
    """Test images of CIFAR-10, the archive's first."""
    found: list[Image.Image] = []
    with tarfile.open(data / CIFAR) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.isfile() else None
            if content is not None and member.name.endswith((".jpg", ".png")):
                found.append(Image.open(io.BytesIO(content.read())))
            if len(found) == IMAGES:
                break
    return found


def folder_images(folder: Path) -> list[Image.Image]:
    """Images below a folder, evenly spread over it."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".jpeg"})
    return [Image.open(path).copy() for path in files[:: max(1, len(files) // IMAGES)][:IMAGES]]


def run(twin: Twin, values: NDArray[Any]) -> None:
    """A forward run."""
    with torch.no_grad():
        twin(torch.from_numpy(values))


def learn(twin: Twin, values: NDArray[Any]) -> None:
    """A forward run and the gradients of all parameters that it reaches."""
    loss = twin(torch.from_numpy(values)).square().mean()
    torch.autograd.grad(loss, list(twin.parameters()), allow_unused=True)


def median_ms(work: Callable[[], object]) -> float:
    """Median milliseconds, after one run to warm up."""
    work()
    times = []
    for _ in range(TIMED_RUNS):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1000)
    return round(statistics.median(times), 3)


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What is asked: every float network has a twin to 1e-3, and each that has none says why."""
    errors = [row["max_error"] for row in rows if row["twin"] and not row["quantised"]]
    agreements = [row["agreement"] for row in rows if row["twin"] and row["quantised"]]
    silent = sum(not row["twin"] and not row["reason"] for row in rows)
    return [
        bar("largest error of a float twin", max(errors), 1e-3, at_least=False),
        bar("lowest agreement of a quantised twin", min(agreements), 0.9, at_least=True),
        bar("teachers without twin or reason", silent, 0, at_least=False),
    ]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table, and the operators that the teachers' graphs are made of."""
    columns = ("model", "twin", "error", "agree", "onnxruntime ms", "twin ms", "with gradient ms", "operators")
    table = [
        [
            row["model"].removesuffix(".onnx"),
            "yes" if row["twin"] else f"no: {row['reason']}",
            *(_figure(row[key], form) for key, form in (("max_error", ".1e"), ("agreement", ".3f"))),
            *(_figure(row[key], ".1f") for key in ("onnxruntime_ms", "forward_ms", "forward_backward_ms")),
            str(len(row["operators"])),
        ]
        for row in rows
    ]
    print_table(f"Torch twins, batches of {TIMED_BATCH}", columns, table)
    counts = Counter(name for row in rows for name in row["operators"])
    print(f"{len(counts)} operators: {', '.join(f'{name} {count}' for name, count in counts.most_common())}")


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


if __name__ == "__main__":
    raise SystemExit(main())
