"""Classify the bundle's parity images with ONNX Runtime: the least that an application does.

`python samples/infer_onnxruntime.py` in the bundle's folder. Needs onnxruntime and NumPy.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort

BUNDLE = Path(__file__).resolve().parents[1]
manifest = json.loads((BUNDLE / "manifest.json").read_text())
recipe = manifest["preprocessing"]

# Replace by your image: uint8 [N, height, width, 3] in RGB, or [N, height, width, 1] in gray.
count = 5 if manifest["interface"]["batch"] == "free" else manifest["interface"]["batch"]
images = np.load(BUNDLE / "parity" / "images.npy")[np.arange(count) % manifest["parity"]["count"]]

batch = images  # where the preprocessing is inside the network
if manifest["interface"]["input"] == "preprocessed":
    pixels = images[..., ::-1] if recipe["channels"] == "BGR" else images
    scaled = (pixels.astype(np.float32) * recipe["scale"] - recipe["mean"]) / recipe["std"]
    batch = np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32)

# The first variant is the target's preferred one; files of other runtimes are not for this program.
model = next(v["path"] for v in manifest["variants"] if v["path"].endswith((".onnx", ".ort")))
session = ort.InferenceSession(str(BUNDLE / model), providers=["CPUExecutionProvider"])
(answers,) = session.run(None, {session.get_inputs()[0].name: batch})

probabilities = answers
if manifest["interface"]["output"] == "logits":
    shifted = np.exp(answers - answers.max(axis=1, keepdims=True))
    probabilities = shifted / shifted.sum(axis=1, keepdims=True)
for row in probabilities:
    best = int(row.argmax())
    print(f"{manifest['labels'][best]}  {row[best]:.3f}")
