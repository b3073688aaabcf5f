"""A digit classifier behind onnxruntime's quantisers and the float16 converter."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from pu_engine.types import Preprocessing
from tests.frameworks.digits import Exported, Pixels, Predict, convention
from tests.frameworks.torch_models import script_plain


class Rows(CalibrationDataReader):  # type: ignore[misc]  # untyped
    """Calibration images in batches of 50."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self.batches = iter(np.split(rows, len(rows) // 50))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        rows = next(self.batches, None)
        return None if rows is None else {"image": rows}


@cache
def _source() -> tuple[bytes, NDArray[np.float32], Preprocessing]:
    return script_plain()


def _predict(file: bytes, dtype: Any = np.float32, batch: int = 32) -> Predict:
    session = ort.InferenceSession(file)

    def predict(images: Pixels) -> NDArray[Any]:
        values = (images.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2).astype(dtype)
        parts = [session.run(None, {"image": values[i : i + batch]})[0] for i in range(0, len(values), batch)]
        return np.concatenate(parts).astype(np.float32)

    return predict


def _quantised(activation: Any, form: Any, *, symmetric: bool = False) -> Exported:
    source, rows, documented = _source()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "float.onnx").write_bytes(source)
        quantize_static(
            path / "float.onnx",
            path / "int8.onnx",
            Rows(rows),
            quant_format=form,
            activation_type=activation,
            weight_type=QuantType.QInt8,
            per_channel=form == QuantFormat.QDQ,
            extra_options={"ActivationSymmetric": symmetric},
        )
        file = (path / "int8.onnx").read_bytes()
    # onnxruntime fuses quantised operators in another way where a tap reads them, and then rounds elsewhere.
    return Exported(
        file=file, documented=documented, output="logits", batch=None, predict=_predict(file), taps=1, error=0.05
    )


def static_qdq_u8() -> Exported:
    """QuantizeLinear pairs, uint8 activations."""
    return _quantised(QuantType.QUInt8, QuantFormat.QDQ)


def static_qdq_s8() -> Exported:
    """QuantizeLinear pairs, symmetric int8 activations."""
    return _quantised(QuantType.QInt8, QuantFormat.QDQ, symmetric=True)


def static_qoperator() -> Exported:
    """QLinearConv and its kin, uint8 activations."""
    return _quantised(QuantType.QUInt8, QuantFormat.QOperator)


def dynamic_int8() -> Exported:
    """Scales computed at run time, over the whole batch."""
    source, _, documented = _source()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        (path / "float.onnx").write_bytes(source)
        quantize_dynamic(path / "float.onnx", path / "int8.onnx", weight_type=QuantType.QUInt8)
        file = (path / "int8.onnx").read_bytes()
    predict = _predict(file, batch=1)
    return Exported(file=file, documented=documented, output="logits", batch=1, predict=predict, taps=1, error=0.05)


def float16_inside() -> Exported:
    """Float16 weights and maps between float32 input and output."""
    return _float16(keep_io_types=True)


def float16_throughout() -> Exported:
    """Float16 from input to output."""
    return _float16(keep_io_types=False)


def _float16(*, keep_io_types: bool) -> Exported:
    from onnxconverter_common import float16

    source, _, _ = _source()
    model = float16.convert_float_to_float16(onnx.ModelProto.FromString(source), keep_io_types=keep_io_types)
    file: bytes = model.SerializeToString()
    dtype = "float32" if keep_io_types else "float16"
    return Exported(
        file=file,
        documented=convention("NCHW", "RGB", 1 / 255, dtype=dtype),
        output="logits",
        batch=None,
        predict=_predict(file, np.dtype(dtype)),
        taps=2,
        error=5e-3,
    )
