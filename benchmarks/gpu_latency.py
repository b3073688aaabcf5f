"""How fast are students on a CUDA device: torch eager beside torch.compile, by CUDA events.

`python -m benchmarks.gpu_latency --out F.json [--students NAME[@SIDE] ...] [--batches 1 32 256]`

Needs torch and timm alone. The networks have random weights: their speed does not depend on them. ONNX Runtime's CUDA
provider and TensorRT are measured where their libraries are; what is missing is listed.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.conditions import conditions
from benchmarks.table import print_table, write_json
from pu_engine.student.catalogue import build

STUDENTS = ("resnet18@32", "mobilenetv4_conv_small@64", "fastvit_t8@64")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WAYS = ("eager", "compile")
WARM_UP, ROUNDS = 10, 50
OTHER_RUNTIMES = {"onnxruntime": "CUDAExecutionProvider", "tensorrt": "", "tensorrt_rtx": ""}

Forward = Callable[[Tensor], Tensor]


def main() -> int:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_latency", description=__doc__)
    parser.add_argument("--students", nargs="+", default=STUDENTS)
    parser.add_argument("--batches", nargs="+", type=int, default=(1, 32, 256))
    parser.add_argument("--precisions", nargs="+", choices=tuple(PRECISIONS), default=tuple(PRECISIONS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="compile takes some 10 s a batch size")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("There is no CUDA device here; this benchmark measures nothing without one.")
    rows = []
    for name in options.students:
        student, side = name.split("@")
        for precision in options.precisions:
            dtype = PRECISIONS[precision]
            module = build(student, int(side), 3, options.classes).eval().cuda().to(dtype)
            for way in options.ways:
                forward = forward_by(way, module)
                for batch in options.batches:
                    images = torch.randn(batch, 3, int(side), int(side), device="cuda", dtype=dtype)
                    rows.append({"student": name, "precision": precision, "by": way, "batch": batch}
                                | measured(forward, images.to(memory_format=torch.channels_last)))  # fmt: skip
    print_table(
        torch.cuda.get_device_name(0), ["student", "precision", "by", "batch", "p50 ms", "p90 ms", "images/s"],
        [[r["student"], r["precision"], r["by"], str(r["batch"]), f"{r['p50_ms']:.3f}", f"{r['p90_ms']:.3f}",
          f"{r['images_per_second']:,.0f}"] for r in rows],
    )  # fmt: skip
    facts = conditions(device=torch.cuda.get_device_name(0), not_here=not_here())
    print("Not measured: " + "; ".join(facts["not_here"]))
    write_json(options.out, {"conditions": facts, "rows": rows})
    return 0


def forward_by(way: str, module: nn.Module) -> Forward:
    """A network as it is, or compiled with CUDA graphs."""
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled: Forward = torch.compile(module, mode="reduce-overhead", dynamic=False)
    return compiled if way == "compile" else module


def measured(forward: Forward, images: Tensor) -> dict[str, Any]:
    """Milliseconds of one batch between two events of the device, after a warm-up that compiles."""
    events = partial(torch.cuda.Event, enable_timing=True)
    starts, ends = ([events() for _ in range(ROUNDS)] for _ in range(2))
    with torch.inference_mode():
        for _ in range(WARM_UP):
            forward(images)
        for start, end in zip(starts, ends, strict=True):
            start.record()
            forward(images)
            end.record()
    torch.cuda.synchronize()
    milliseconds = [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]
    return {
        "p50_ms": median(milliseconds), "p90_ms": quantiles(milliseconds, n=10)[-1],
        "images_per_second": 1000 * len(images) / median(milliseconds),
    }  # fmt: skip


def not_here() -> list[str]:
    """The runtimes that could not be measured, each with what is missing."""
    missing = []
    for package, provider in OTHER_RUNTIMES.items():
        if importlib.util.find_spec(package) is None:
            missing.append(f"{package}: not installed")
        elif provider:
            import onnxruntime

            if provider not in onnxruntime.get_available_providers():
                missing.append(f"{package}: built without {provider}")
    return missing


if __name__ == "__main__":
    raise SystemExit(main())
