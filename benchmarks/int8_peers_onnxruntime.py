"""onnxruntime's int8 of an ONNX file by its `quantize_static` alone: the plain baseline of `benchmarks.int8_peers`.

`python -I int8_peers_onnxruntime.py MODEL.onnx CALIBRATION.npy OUT.onnx [U8S8]` writes the file and prints what it took
as JSON. Its own defaults (QDQ, signed activations and weights, one scale a tensor, extremes) after its preparation.
U8S8: unsigned activations, which its documentation advises for x86, and one scale a channel.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

SETTINGS = {"": {}, "U8S8": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}}


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """One image after the other."""

    def __init__(self, images: NDArray[np.float32]) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next input, None at the end."""
        image = next(self._images, None)
        return None if image is None else {"input": image[None]}


def main(arguments: list[str]) -> None:
    """Quantise, write, print."""
    source, calibration, out, *setting = arguments
    images = np.load(calibration)
    clock, processor = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, str(prepared), skip_symbolic_shape=True)
        quantize_static(str(prepared), out, Reader(images), **SETTINGS["".join(setting)])
    took = {"seconds": time.monotonic() - clock, "cpu_seconds": time.process_time() - processor}
    print(json.dumps({**took, "versions": {"onnxruntime": onnxruntime.__version__}}))


if __name__ == "__main__":
    main(sys.argv[1:])
