"""onnxruntime sessions, always with the provider that was asked for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

# Read at import; the Linux wheels otherwise write a device id.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from pu_engine.errors import EngineError

PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
SEVERITY_ERROR = 3


def open_session(
    model: Path | bytes,
    *,
    threads: int,
    provider: str = "cpu",
    provider_options: Mapping[str, str] | None = None,
    fold_constants: bool = True,
) -> ort.InferenceSession:
    """A session on exactly the provider asked for.

    Args:
        model: a file that Punnet wrote, or serialised bytes; never a user's path.
        threads: intra-op threads, >= 1.
        fold_constants: False for a model that nobody vetted: folding runs its constants at creation.
        provider_options: as the provider documents them. What TensorRT can't build runs on CUDA.

    Raises:
        EngineError: STAGE_PROTOCOL where the provider is not the one asked for (onnxruntime falls back silently).
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SEVERITY_ERROR
    # Spinning costs 20 % more CPU time on shared cores; the arena keeps the largest batch's memory for good.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    wanted = PROVIDERS[provider]
    disabled = [] if fold_constants else ["ConstantFolding"]
    source = model if isinstance(model, bytes) else str(model)
    providers: list[str | tuple[str, dict[str, str]]] = [(wanted, dict(provider_options or {}))]
    if provider == "tensorrt":
        providers.append(PROVIDERS["cuda"])
    session = ort.InferenceSession(
        source, options, providers=providers, disabled_optimizers=disabled, enable_fallback=0
    )
    actual = session.get_providers()[0]
    if actual != wanted:
        raise EngineError(
            "STAGE_PROTOCOL",
            f"onnxruntime runs on {actual}, not on {wanted}.",
            "Install the provider's libraries, or ask for the cpu provider.",
            wanted=wanted,
            actual=actual,
        )
    return session
