"""Does `auto` find a student within every limit that is as accurate as the default one at equal cost?

`python -m benchmarks.auto_student --data ../shared/data --teacher ../shared/teachers/cifar10_resnet20.onnx
    --out F.json`

The quickstart's setting: 100 labelled CIFAR-10 images a class, a pool of Tiny-ImageNet, over the wire. First the
default student of that size is trained. Then `auto` gets the default's own figures as limits (parameters,
multiply-accumulates, bytes, latency with a margin for noise) and the same steps and seed. Test images measure only.
`--shards` and `--test` make a smaller run of it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy import answers
from benchmarks.conditions import conditions
from benchmarks.quickstart import read_labelled, read_test, share_right
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine.student.catalogue import default_name
from punnet import Client

SIZE, BATCH, SEED, OUTPUT = 32, 64, 0, "logits"
STEPS = 800
LATENCY_MARGIN = 1.25  # of the limit: the same file's median moves so much between two measurements of a busy machine
# A run's test accuracy has a standard error of half a point, and the two students are trained once each.
AS_ACCURATE = -0.015


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What both students are trained with and measured on."""

    teacher: Path
    images: dict[str, list[bytes]]
    test_images: NDArray[np.uint8]
    test_labels: list[str]
    steps: int
    work: Path
    pool: str


def main() -> int:
    """Run the benchmark; 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.auto_student", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the images, see its README.md")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(".bench/auto-student"), help="server's data and downloads")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--shards", type=int, default=8, help="of the pool, 5,000 images each")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    options = parser.parse_args()
    started = time.monotonic()
    name = default_name(SIZE)
    facts = conditions(
        seed=SEED, default=name, steps=options.steps, batch_size=BATCH, shards=options.shards, test=options.test
    )
    test_images, test_labels = read_test(options.data)
    every = max(1, len(test_labels) // options.test)  # they come class by class
    pool = f"tiny-imagenet-{options.shards}"
    setting = Setting(
        teacher=options.teacher, images=read_labelled(options.data), test_images=test_images[::every],
        test_labels=test_labels[::every], steps=options.steps, work=options.work, pool=pool,
    )  # fmt: skip
    with Client(data=options.work / "data") as client:
        if pool not in [found.name for found in client.pools()]:
            client.create_pool(pool, sorted((options.data / "pool").glob("*.tar"))[: options.shards]).wait()
        default = trained(client, setting, "default", student=name)
        latency = client.timed_student(name, SIZE).latency_ms
        limits = {
            "max_parameters": default["parameters"], "max_macs": default["macs"], "max_bytes": default["bytes"],
            "max_latency_ms": LATENCY_MARGIN * latency,
        }  # fmt: skip
        chosen = trained(client, setting, "auto", student="auto", **limits)
    default["latency_ms"] = latency
    result: dict[str, Any] = {
        "conditions": facts,
        "limits": limits,
        "rows": [default, chosen],
        "bars": bars_of(default, chosen, limits),
        "seconds": time.monotonic() - started,
    }
    write_json(options.out, result)
    show(result)
    return 0 if all(one["holds"] for one in result["bars"]) else 1


def trained(client: Client, setting: Setting, arm: str, **student: Any) -> dict[str, Any]:
    """A student trained over the wire: its figures, its accuracy on the test images and what its training took."""
    job = client.compress(
        setting.teacher, setting.images, setting.pool, steps=setting.steps, batch_size=BATCH, seed=SEED,
        targets=["cpu"], variants=["fp32"], **student,
    )  # fmt: skip
    job.wait()
    folder = setting.work / arm
    job.download(folder)
    report = json.loads((folder / "report.json").read_text())
    found = answers(folder / "student.onnx", setting.test_images, report["student"]["preprocessing"], OUTPUT)
    facts, candidates = report["student"], report["student"]["candidates"]
    chosen: dict[str, str] = next((c for c in candidates if c["verdict"] == "chosen"), {})
    return {
        "arm": arm,
        "student": facts["name"],
        "parameters": facts["parameters"],
        "macs": facts["macs"],
        "bytes": int(chosen.get("bytes", (folder / "student.safetensors").stat().st_size)),
        "latency_ms": float(chosen.get("latency_ms", "nan")) if chosen else None,
        "accuracy": share_right(found, setting.test_labels, report),
        "picked": report["selection"]["picked"],
        "seconds": report["stages"]["distillation"]["seconds"],
        "candidates": candidates,
    }


def bars_of(default: dict[str, Any], chosen: dict[str, Any], limits: dict[str, float]) -> list[dict[str, Any]]:
    """Within every limit, and as accurate as the default."""
    within = [
        bar(f"auto's {key}", chosen[key], limits[f"max_{key}"], at_least=False)
        for key in ("parameters", "macs", "bytes", "latency_ms")
    ]
    difference = chosen["accuracy"] - default["accuracy"]
    return [*within, bar("auto minus default, within noise", difference, AS_ACCURATE, at_least=True)]


def show(result: dict[str, Any]) -> None:
    """Print the result."""
    rows = [
        [f"{r['arm']}: {r['student']}", f"{r['parameters']:,}", f"{r['macs']:,}", f"{r['bytes']:,}",
         f"{r['latency_ms']:.3g}", f"{r['accuracy']:.1%}", f"{r['seconds']:.0f}"]
        for r in result["rows"]
    ]  # fmt: skip
    columns = ["student", "parameters", "multiply-accumulates", "bytes", "ms", "accuracy", "training s"]
    print_table("Students at equal limits and steps", columns, rows)
    tried = [[c["name"], c["macs"], c.get("trials", ""), c["verdict"]] for c in result["rows"][1]["candidates"]]
    print_table("Candidates of auto", ["student", "multiply-accumulates", "agreement in trials", "verdict"], tried)
    print_bars(result["bars"])


if __name__ == "__main__":
    raise SystemExit(main())
