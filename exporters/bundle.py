"""What a device needs, in one deterministic zip: files, parity images, programs and words.

The same inputs give the same bytes: entries are sorted, stored without compression and carry one fixed time. Engines
are not in it: they differ from build to build, and the device makes its own.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.bundle_words import readme
from exporters.device_build import MANIFEST, MANIFEST_SCHEMA
from exporters.targets import Target

HERE = Path(__file__).parent
BUNDLED = HERE / "bundled"
# All that the device runs; none of it imports more than NumPy and the runtime.
DEVICE_MODULES = (
    "__init__.py",
    "cuda_driver.py",
    "device_build.py",
    "device_report.py",
    "engine_builder.py",
    "engine_child.py",
    "engine_run.py",
    "errors.py",
    "file_lock.py",
    "timing_cache.py",
)
SAMPLES = {
    "tensorrt": ("infer_tensorrt.py", "infer_tensorrt.cpp"),
    "tensorrt_rtx": ("infer_tensorrt.py",),
    "onnxruntime": ("infer_onnxruntime.py",),
    "onnxruntime_mobile": ("infer_onnxruntime.py",),
}
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say
UNIX = 3
FILE_MODE = 0o100644 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledVariant:
    """One file for the device, in the target's order of preference."""

    name: str
    precision: str
    path: Path
    file: str  # its name in the bundle
    expected: NDArray[np.float32]  # logits [n, K] of the parity inputs, from this very file
    beside: tuple[Path, ...] = ()  # files without which it can't be loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """The images that a device checks itself with."""

    images: NDArray[np.uint8]  # [n, H, W, C]
    inputs: NDArray[Any]  # what the files take: [n, C, H, W] float32, or the images as they are
    source: str  # pool | generated | own


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """What every file of a bundle takes and gives."""

    pixels: bool = False  # uint8 [N, H, W, C], the preprocessing being inside
    probabilities: bool = False  # not logits
    free: bool = True  # any batch


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleContent:
    """All that a bundle says."""

    target: Target
    student: str
    labels: tuple[str, ...]
    preprocessing: Mapping[str, Any]  # of the student: scale, mean, std, channels, height, width
    interface: Interface
    batches: tuple[int, int, int]
    variants: tuple[BundledVariant, ...]
    parity: Parity


def write_bundle(content: BundleContent, path: Path) -> str:
    """Write the zip; its sha256. Everything in it lies below one folder, `bundle-<target>`."""
    files = _variant_files(content) | _programs(content.target)
    files["parity/images.npy"] = _npy(content.parity.images)
    files["parity/inputs.npy"] = _npy(content.parity.inputs)
    files["labels.txt"] = "".join(f"{label}\n" for label in content.labels).encode()
    files["README.md"] = readme(
        content.target,
        [v.file for v in content.variants],
        content.labels,
        pixels=content.interface.pixels,
        output="probabilities" if content.interface.probabilities else "logits",
        batch=None if content.interface.free else content.batches[0],
    ).encode()
    files[MANIFEST] = _manifest(content, files)
    data = _zip(f"bundle-{content.target.name}", files)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _variant_files(content: BundleContent) -> dict[str, bytes]:
    files = {}
    for variant in content.variants:
        files[variant.file] = variant.path.read_bytes()
        files |= {path.name: path.read_bytes() for path in variant.beside}
        files[_expected(variant)] = _npy(variant.expected)
    return files


def _programs(target: Target) -> dict[str, bytes]:
    files = {f"samples/{name}": (BUNDLED / name).read_bytes() for name in SAMPLES[target.runtime]}
    if target.has_engines:
        files["build_on_target.py"] = (BUNDLED / "build_on_target.py").read_bytes()
        files |= {f"exporters/{name}": (HERE / name).read_bytes() for name in DEVICE_MODULES}
    return files


def _manifest(content: BundleContent, files: Mapping[str, bytes]) -> bytes:
    target, parity = content.target, content.parity
    manifest = {
        "schema": MANIFEST_SCHEMA,
        "target": {
            "name": target.name,
            "device": target.device,
            "runtime": target.runtime,
            "capabilities": list(target.capabilities),
        },
        "student": content.student,
        "labels": list(content.labels),
        "preprocessing": dict(content.preprocessing),
        "interface": {
            "input": "pixels" if content.interface.pixels else "preprocessed",
            "output": "probabilities" if content.interface.probabilities else "logits",
            "batch": "free" if content.interface.free else content.batches[0],
        },
        "batches": list(content.batches),
        "variants": [
            {
                "name": v.name,
                "precision": v.precision,
                "path": v.file,
                "sha256": hashlib.sha256(files[v.file]).hexdigest(),
                "expected": _expected(v),
            }
            for v in content.variants
        ],
        "parity": {
            "images": "parity/images.npy",
            "inputs": "parity/inputs.npy",
            "count": len(parity.images),
            "source": parity.source,
        },
        "files": [
            {"path": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
            for name, data in sorted(files.items())
        ],
    }
    return json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False).encode()


def _expected(variant: BundledVariant) -> str:
    return f"parity/{variant.name}.logits.npy"


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _zip(folder: str, files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{folder}/{name}", ZIP_TIME)
            entry.create_system, entry.external_attr = UNIX, FILE_MODE
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def bundled_names(variants: Sequence[str], target: Target) -> list[str]:
    """The variants that a target's bundle takes of those that there are, in the target's order."""
    return [name for name in target.variants if name in variants]
