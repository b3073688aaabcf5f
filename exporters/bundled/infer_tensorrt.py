"""Classify the bundle's parity images with an engine that build_on_target.py made: the least that an application does.

`python samples/infer_tensorrt.py` in the bundle's folder. Needs TensorRT or TensorRT-RTX, and NumPy.
Deserialising an engine runs code: load only engines that this device built.
"""

import json
import sys
from pathlib import Path

import numpy as np

BUNDLE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(BUNDLE))

from exporters.cuda_driver import Stream, find_device  # noqa: E402
from exporters.engine_run import LoadedEngine  # noqa: E402

manifest = json.loads((BUNDLE / "manifest.json").read_text())
report = json.loads((BUNDLE / "engines" / "device-report.json").read_text())
chosen = next(row for row in report["variants"] if row["name"] == report["recommended"])
recipe = manifest["preprocessing"]

# Replace by your image: uint8 [N, height, width, 3] in RGB, or [N, height, width, 1] in gray.
count = 5 if manifest["interface"]["batch"] == "free" else manifest["interface"]["batch"]
images = np.load(BUNDLE / "parity" / "images.npy")[np.arange(count) % manifest["parity"]["count"]]

batch = images  # where the preprocessing is inside the network
if manifest["interface"]["input"] == "preprocessed":
    pixels = images[..., ::-1] if recipe["channels"] == "BGR" else images
    scaled = (pixels.astype(np.float32) * recipe["scale"] - recipe["mean"]) / recipe["std"]
    batch = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32)

device = find_device()
if device is None:
    raise SystemExit("There is no CUDA device here.")
with Stream(device) as stream:
    engine = LoadedEngine(
        report["runtime"], BUNDLE / "engines" / chosen["path"], device=device, stream=stream, max_batch=len(batch)
    )
    answers = engine.logits(batch, len(batch))

probabilities = answers
if manifest["interface"]["output"] == "logits":
    shifted = np.exp(answers - answers.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
for row in probabilities:
    best = int(row.argmax())
    print(f"{manifest['labels'][best]}  {row[best]:.3f}")
