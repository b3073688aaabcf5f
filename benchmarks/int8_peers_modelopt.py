"""ModelOpt's int8 of an ONNX file: `benchmarks.int8_peers` runs it in ModelOpt's own environment, without Punnet.

`python -I int8_peers_modelopt.py MODEL.onnx CALIBRATION.npy OUT.onnx` writes the file and prints what it took as JSON.
ModelOpt's own defaults (entropy), but for three: calibration on the CPU, fp32 in the place of fp16 around int8, and
weights stored as int8 (`dq_only`), which by default stay float in the file until TensorRT folds them.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time

import numpy as np
from modelopt.onnx.quantization import quantize


def main(arguments: list[str]) -> None:
    """Quantise, write, print."""
    source, calibration, out = arguments
    images = np.load(calibration)
    clock, processor = time.monotonic(), time.process_time()
    quantize(
        source, quantize_mode="int8", calibration_data=images, calibration_eps=["cpu"], high_precision_dtype="fp32",
        dq_only=True, output_path=out, log_level="WARNING",
    )  # fmt: skip
    took = {"seconds": time.monotonic() - clock, "cpu_seconds": time.process_time() - processor}
    versions = {name: importlib.metadata.version(name) for name in ("nvidia-modelopt", "onnx", "onnxruntime")}
    print(json.dumps({**took, "versions": versions}))


if __name__ == "__main__":
    main(sys.argv[1:])
