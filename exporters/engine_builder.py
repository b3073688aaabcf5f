"""An ONNX file to an engine, by TensorRT 10 or 11 or by TensorRT-RTX: strongly typed, the types are the file's.

TensorRT-RTX builds ahead of time for several compute capabilities, without a GPU; TensorRT builds on the device that
the engine is for (not run on hardware yet). An engine is a cache of the ONNX file for one builder version: two builds
of one file differ in their bytes, so an engine is known by its address, not by its digest.

`exporters.engine_child` runs this module as a process of its own. Bundles carry it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters.cuda_driver import find_device
from exporters.errors import BuildCancelledError, ExportError
from exporters.timing_cache import TimingCache, use_timings

BUILDERS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
INSTALL = {
    "tensorrt": "JetPack brings it on a Jetson; elsewhere the extra punnet[trt] installs it from NVIDIA's index",
    "tensorrt_rtx": "the extra punnet[rtx] installs it",
}
REMEDY = "Leave the target out, or choose another student."
FLAG_COSTS = {
    "version_compatible": "version-compatible: runs on later TensorRT 10 versions; the engine carries a lean runtime "
    "of some 10 MB, and layers can be slower than those of an engine for one version",
    "hardware_compatible": "hardware-compatible: runs on every card from Ampere on; only kernels that all of them have "
    "are used, which costs speed, and Jetson can't use it",
}
BEAT_SECONDS = 0.25
PR_SET_PDEATHSIG, SIGKILL = 1, 9
Beat = Callable[[str, int, int], bool]  # phase, done, total; False asks the build to stop


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What to build.

    Args:
        onnx: path of a file with one image input of free batch and otherwise fixed sizes.
        builder: "tensorrt" or "tensorrt_rtx".
        capabilities: for instance ("SM89",). TensorRT-RTX builds for all of them, or where there are none for the
            device here; TensorRT refuses a device here that is not among them.
        batches: least, best and most images of one run.
        workspace_bytes: scratch memory of any layer at most; None leaves the builder's own limit.
        timing_cache: a folder that builds share; None for none.
    """

    onnx: str
    builder: str
    capabilities: tuple[str, ...]
    batches: tuple[int, int, int]
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    timing_cache: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What was built."""

    address: str
    sha256: str
    size: int
    onnx_sha256: str
    builder: str
    version: str  # of the builder
    capabilities: tuple[str, ...]
    batches: tuple[int, int, int]
    seconds: float
    costs: tuple[str, ...] = ()  # of the flags that were set, in words


def missing(builder: str) -> str | None:
    """What keeps a builder from working here; None where nothing does."""
    try:
        importlib.import_module(builder)
    except (ImportError, OSError) as error:  # bindings without their libraries raise either
        return f"{BUILDERS[builder]} can't be imported ({error}); {INSTALL[builder]}"
    return None


def version(builder: str) -> str:
    """A builder's version; it must be installed."""
    return str(importlib.import_module(builder).__version__)


def built_for(request: EngineRequest) -> tuple[str, ...]:
    """The compute capabilities that an engine of this request serves.

    Raises:
        ExportError: there is no device here where one is needed, or another one than was asked for.
    """
    if request.builder == "tensorrt_rtx" and request.capabilities:
        return request.capabilities
    device = find_device()
    name = BUILDERS[request.builder]
    if device is None:
        wanted = ", ".join(request.capabilities) or "the device here"
        raise ExportError(
            f"{name} builds only on the device that the engine is for ({wanted}); there is no CUDA device here.",
            "Run build_on_target.py of the target's bundle on the device, or `punnet agent` there.",
            builder=request.builder,
        )
    if request.capabilities and device.capability not in request.capabilities and not request.hardware_compatible:
        raise ExportError(
            f"{device.name} is {device.capability}; the engine is for {', '.join(request.capabilities)}.",
            "Build on a device of the target's family.",
            device=device.name,
        )
    return ("ampere-plus",) if request.hardware_compatible else (device.capability,)


def engine_address(request: EngineRequest, onnx_sha256: str) -> str:
    """What an engine is kept under: ONNX digest, builder and version, capabilities, profile, flags."""
    content = {
        "onnx": onnx_sha256,
        "builder": request.builder,
        "version": version(request.builder),
        "capabilities": sorted(built_for(request)),
        "batches": request.batches,
        "workspace": request.workspace_bytes,
        "version_compatible": request.version_compatible,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:32]


def build_here(request: EngineRequest, path: Path, beat: Beat) -> EngineFacts:
    """Build in this process. `path` appears once the engine is whole.

    Raises:
        ExportError: the builder is missing, or refuses a node (named), a capability, or the whole network.
        BuildCancelledError: `beat` said False.
    """
    started = time.monotonic()
    lacking = missing(request.builder)
    if lacking:
        raise ExportError(f"{lacking}.", "The ONNX file is not affected.", builder=request.builder)
    trt: Any = importlib.import_module(request.builder)
    capabilities = built_for(request)
    log = _logger(request.builder)
    del log.messages[:]
    builder = trt.Builder(log)
    network = builder.create_network(_strongly_typed(trt))
    onnx = Path(request.onnx)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(onnx)):
        raise _unparsed(request, [parser.get_error(i) for i in range(parser.num_errors)])
    config = builder.create_builder_config()
    keep_timings = _configure(trt, request, builder, network, config)
    monitor = _monitor(trt, beat)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.cancelled:
        raise BuildCancelledError(f"The build of {onnx.name} was cancelled.")
    if plan is None:
        said = "; ".join(log.messages[-3:]) or "it gave no reason"
        name = BUILDERS[request.builder]
        raise ExportError(f"{name} could not build {onnx.name}: {said}.", REMEDY, file=onnx.name)
    keep_timings()
    data = bytes(plan)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    os.replace(partial, path)
    onnx_sha256 = hashlib.sha256(onnx.read_bytes()).hexdigest()
    return EngineFacts(
        address=engine_address(request, onnx_sha256),
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        onnx_sha256=onnx_sha256,
        builder=request.builder,
        version=version(request.builder),
        capabilities=capabilities,
        batches=request.batches,
        seconds=time.monotonic() - started,
        costs=tuple(text for flag, text in FLAG_COSTS.items() if getattr(request, flag)),
    )


def _configure(trt: Any, request: EngineRequest, builder: Any, network: Any, config: Any) -> Callable[[], None]:
    """Set what the request says; returns what is to be called after the build."""
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector says no more than this keeps
    source = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(source.name, *((batch, *tuple(source.shape)[1:]) for batch in request.batches))
    config.add_optimization_profile(profile)
    if request.builder == "tensorrt_rtx":
        _set_capabilities(trt, request, config)
        return lambda: None
    if request.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    device = find_device()
    if request.timing_cache is None or device is None:
        return lambda: None
    cache = TimingCache(folder=Path(request.timing_cache), version=version(request.builder), device=device.name)
    return use_timings(config, cache)


def _set_capabilities(trt: Any, request: EngineRequest, config: Any) -> None:
    flags = [name for name in FLAG_COSTS if getattr(request, name)]
    if flags:
        raise ExportError(
            f"TensorRT-RTX has no {flags[0]} engines.", "List compute capabilities instead.", flag=flags[0]
        )
    names = request.capabilities or ("CURRENT",)
    config.num_compute_capabilities = len(names)
    for slot, name in enumerate(names):
        config.set_compute_capability(_capability(trt, name), slot)


def _capability(trt: Any, name: str) -> Any:
    known = trt.ComputeCapability.__members__
    if name not in known:
        raise ExportError(
            f"TensorRT-RTX knows no compute capability {name!r}.", f"Choose from {', '.join(sorted(known))}.", name=name
        )
    return known[name]


def _strongly_typed(trt: Any) -> int:
    """The network's flags. Every network of TensorRT 11 is strongly typed, whether or not it keeps the flag."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _unparsed(request: EngineRequest, errors: Sequence[Any]) -> ExportError:
    said = [f"{e.node_operator() or 'model'} {e.node_name()!r}: {e.desc()}" for e in errors]
    return ExportError(
        f"{BUILDERS[request.builder]} can't read {Path(request.onnx).name}: {'; '.join(said)[:600]}.",
        REMEDY,
        nodes=", ".join(e.node_name() for e in errors),
        operators=", ".join(e.node_operator() for e in errors),
    )


@functools.cache
def _logger(builder: str) -> Any:
    """The process's one logger: a builder ignores later ones. It keeps errors instead of printing them."""
    trt: Any = importlib.import_module(builder)

    class CollectingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.messages.append(message.strip())

    return CollectingLogger()


def _monitor(trt: Any, beat: Beat) -> Any:
    """Passes the builder's phases on, and stops it between two steps."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.cancelled = False
            self._totals: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self._totals[phase] = steps

        def phase_finish(self, phase: str) -> None:
            self._totals.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            self.cancelled = self.cancelled or not beat(phase, step + 1, self._totals.get(phase, 0))
            return not self.cancelled

    return Monitor()


def request_from(values: Mapping[str, Any]) -> EngineRequest:
    """A request from its JSON form."""
    return EngineRequest(
        **{**values, "capabilities": tuple(values["capabilities"]), "batches": tuple(values["batches"])}
    )


def main() -> int:
    """Build what the JSON object on standard input says; beats and result are JSON lines on standard output."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the builders print on standard output
    order = json.load(sys.stdin)
    die_with(order["parent"])
    said = 0.0

    def beat(phase: str, done: int, total: int) -> bool:
        nonlocal said
        if time.monotonic() - said >= BEAT_SECONDS:
            said = time.monotonic()
            print(json.dumps({"beat": [phase, done, total]}), file=answer)
        return True

    try:
        facts = build_here(request_from(order["request"]), Path(order["path"]), beat)
    except ExportError as error:
        refusal = {"message": error.message, "remedy": error.remedy, "details": error.details}
        print(json.dumps({"refusal": refusal}), file=answer)
        return 1
    print(json.dumps({"facts": asdict(facts)}), file=answer)
    return 0


def die_with(parent: int) -> None:
    """End when the parent does, however it ends; where the kernel offers no such thing, a build ends by itself."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("the process that asked for the build is gone")


if __name__ == "__main__":
    raise SystemExit(main())
