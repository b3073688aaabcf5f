"""NNCF's int8 of an ONNX file: `benchmarks.int8_peers` runs it in NNCF's own environment, which has nothing of Punnet.

`python -I int8_peers_nncf.py MODEL.onnx CALIBRATION.npy OUT.onnx` (or OUT.xml for OpenVINO's IR) writes the file and
prints what it took as JSON. NNCF's own defaults, but for the number of images: all that are there.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # else both report each call to their makers


def main(arguments: list[str]) -> None:
    """Quantise, write, print."""
    import nncf
    import onnx
    import openvino

    source, calibration, out = (Path(argument) for argument in arguments)
    images = np.load(calibration)
    dataset = nncf.Dataset([image[None] for image in images], lambda image: {"input": image})
    model: Any = onnx.load(source) if out.suffix == ".onnx" else openvino.Core().read_model(source)
    clock, processor = time.monotonic(), time.process_time()
    quantised = nncf.quantize(model, dataset, subset_size=len(images))
    took = {"seconds": time.monotonic() - clock, "cpu_seconds": time.process_time() - processor}
    if out.suffix == ".onnx":
        onnx.save(quantised, out)
    else:
        openvino.save_model(quantised, out, compress_to_fp16=False)
    versions = {name: importlib.metadata.version(name) for name in ("nncf", "openvino", "onnx", "onnxruntime")}
    print(json.dumps({**took, "versions": versions}))


if __name__ == "__main__":
    main(sys.argv[1:])
