"""Which onnxruntime provider runs a teacher: chosen by what starts on this machine, never fallen back to in silence.

CUDA and TensorRT have not been run on hardware by this project's tests: what they can't reach is the execution
itself. The choice, the assertion and the options are tested on the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnxruntime as ort

from pu_engine.errors import EngineError
from pu_engine.runtime.forward import ORT_ERRORS
from pu_engine.runtime.sessions import PROVIDERS

AUTO = "auto"
GPU_PROVIDERS = ("tensorrt", "cuda")  # in the order in which they are tried
MESSAGE_CHARACTERS = 200
SEVERITY_FATAL = 4
SMALLEST_OPSET = 13


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderChoice:
    """A provider that starts here; `warnings` name those that are installed and don't."""

    name: str
    warnings: tuple[str, ...] = ()


def choose_provider(wanted: str) -> ProviderChoice:
    """The provider asked for, or with "auto" the fastest that starts: TensorRT, CUDA, else the CPU.

    Raises:
        EngineError: STAGE_PROTOCOL where the provider asked for is unknown or doesn't start.
    """
    if wanted != AUTO:
        check_starts(wanted)
        return ProviderChoice(name=wanted)
    installed = ort.get_available_providers()
    warnings = []
    for name in GPU_PROVIDERS:
        if PROVIDERS[name] not in installed:
            continue
        try:
            check_starts(name)
        except EngineError as error:
            warnings.append(f"{error.message} The next provider is used.")
            continue
        return ProviderChoice(name=name, warnings=tuple(warnings))
    return ProviderChoice(name="cpu", warnings=tuple(warnings))


def check_starts(name: str) -> None:
    """Run one addition on a provider alone, without the CPU behind it.

    Raises:
        EngineError: STAGE_PROTOCOL.
    """
    if name not in PROVIDERS:
        known = ", ".join((AUTO, *PROVIDERS))
        raise EngineError("STAGE_PROTOCOL", f"There is no provider {name!r}.", f"Choose from {known}.", wanted=name)
    wanted = PROVIDERS[name]
    options = ort.SessionOptions()
    options.log_severity_level = SEVERITY_FATAL
    if name != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if wanted not in ort.get_available_providers():
        raise _does_not_start(name, "this onnxruntime was built without it")
    try:
        session = ort.InferenceSession(_addition(), options, providers=[wanted], enable_fallback=0)
        actual = session.get_providers()[0]
        session.run(None, {"x": [1.0]})
    except (*ORT_ERRORS, ValueError) as error:
        raise _does_not_start(name, str(error)[:MESSAGE_CHARACTERS]) from error
    if actual != wanted:
        raise _does_not_start(name, f"onnxruntime runs on {actual} in its place")


def tensorrt_options(tensor: str, shape: tuple[int, ...], cache: Path) -> Mapping[str, str]:
    """Options of the TensorRT provider: one explicit profile of one shape, and caches that outlive a crash.

    Without a profile each new shape would build its engine in the middle of the work: the last batch is padded.

    Args:
        tensor: name of the graph's input.
        shape: of every batch, the batch size first.
        cache: folder for engines and timings; they fit this machine alone.
    """
    profile = f"{tensor}:{'x'.join(map(str, shape))}"
    return {
        "trt_profile_min_shapes": profile,
        "trt_profile_opt_shapes": profile,
        "trt_profile_max_shapes": profile,
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
    }


def _addition() -> bytes:
    make = onnx.helper
    vectors = [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = make.make_graph([make.make_node("Add", ["x", "x"], ["y"])], "addition", vectors[:1], vectors[1:])
    opsets = [make.make_opsetid("", SMALLEST_OPSET)]
    model = make.make_model(graph, opset_imports=opsets, ir_version=8)
    return bytes(model.SerializeToString())


def _does_not_start(name: str, why: str) -> EngineError:
    return EngineError(
        "STAGE_PROTOCOL",
        f"The provider {name!r} does not start: {why}.",
        "Install the provider's libraries, or ask for the cpu provider.",
        wanted=PROVIDERS[name],
    )
