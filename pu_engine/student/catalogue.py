"""Students by name: CIFAR ResNets of our own, and any classifier of timm.

The CIFAR ResNets are those of He et al. 2015, section 4.2: widths 16/32/64, a 3x3 stem of stride 1 and option A
shortcuts (subsampled, zero-padded, no parameters), which gives 172,506 parameters for 14 layers and 10 classes.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from pu_engine.errors import EngineError

CIFAR_BLOCKS = {f"cifar_resnet{6 * n + 2}": n for n in (1, 2, 3, 5, 7, 9)}
CIFAR_WIDTHS = (16, 32, 64)
CIFAR_SIZE = 32
SMALL_SIZE = 64  # up to here a stem that halves twice leaves too small a map
MIN_SIZE = 8
RECOMMENDED_TIMM = (
    "convnext_atto",
    "efficientnet_b0",
    "efficientvit_b0",
    "fastvit_t8",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mobilenetv4_conv_small_050",
    "repvgg_a0",
    "resnet18",
)
COUNTED_CLASSES = 10
CLOSE_MATCHES = 5
# What timm's constructors and forwards raise for a size that they can't take.
UNFIT = (RuntimeError, ValueError, TypeError, AssertionError, AttributeError, IndexError, ZeroDivisionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueEntry:
    """A network that can be trained; counts are for 10 classes at `size`, 0 where they were not measured."""

    name: str
    parameters: int
    macs: int
    size: int
    source: str  # punnet | timm
    latency_ms: float = 0.0  # of one image on one thread here; 0 where it was not measured


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and an option A shortcut."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.stride = 1 if width_in == width_out else 2
        self.added = width_out - width_in
        self.conv1 = nn.Conv2d(width_in, width_out, 3, self.stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.added:
            before = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        return F.relu(x + y)


class CifarResNet(nn.Module):
    """He et al. 2015, section 4.2: 6n + 2 layers."""

    def __init__(self, blocks: int, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, CIFAR_WIDTHS[0], 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(CIFAR_WIDTHS[0])
        width, stages = CIFAR_WIDTHS[0], []
        for wider in CIFAR_WIDTHS:
            stages += [CifarBlock(width if i == 0 else wider, wider) for i in range(blocks)]
            width = wider
        self.blocks = nn.Sequential(*stages)
        self.head = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def default_name(size: int) -> str:
    """The student for a size in pixels where the user names none."""
    return "cifar_resnet20" if size <= SMALL_SIZE else "mobilenetv4_conv_small"


def build(name: str, size: int, channels: int, classes: int) -> nn.Module:
    """A network [N, channels, size, size] -> [N, classes] in eval mode; its weights follow torch's global seed.

    Raises:
        EngineError: STUDENT_UNKNOWN; STUDENT_UNSUPPORTED where it can't take the size.
    """
    if size < MIN_SIZE:
        raise _unsupported(name, size, f"images must be at least {MIN_SIZE} pixels wide")
    if name in CIFAR_BLOCKS:
        return CifarResNet(CIFAR_BLOCKS[name], channels, classes).eval()
    _check_known(name)
    try:
        module = _build_timm(name, size, channels, classes).eval()
        with torch.no_grad():
            logits = module(torch.zeros(2, channels, size, size))
    except UNFIT as error:
        raise _unsupported(name, size, f"{type(error).__name__}: {error}") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        raise _unsupported(name, size, f"it does not give one logit for each of {classes} classes")
    return module


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in module.parameters())


def count_macs(module: nn.Module, size: int, channels: int) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image; attention's products are left out."""
    total = 0

    def count(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, _ConvNd):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features

    counted = [m for m in module.modules() if isinstance(m, _ConvNd | nn.Linear)]
    hooks = [m.register_forward_hook(count) for m in counted]
    was_training = module.training
    try:
        with torch.no_grad():
            module.eval()(torch.zeros(1, channels, size, size))
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return total


def catalogue(name_contains: str = "") -> list[CatalogueEntry]:
    """Students whose name holds a text, by name; for an empty text those that Punnet recommends, counted."""
    if not name_contains:
        return [measure(name) for name in sorted((*CIFAR_BLOCKS, *RECOMMENDED_TIMM))]
    wanted = name_contains.lower()
    return [entry for entry in every_student() if wanted in entry.name]


def every_student() -> list[CatalogueEntry]:
    """All that can be trained, by name; only Punnet's own are counted: to build a thousand of timm's takes minutes."""
    others = [
        CatalogueEntry(name=name, parameters=0, macs=0, size=_timm_size(name), source="timm") for name in _timm_names()
    ]
    return sorted([*map(measure, CIFAR_BLOCKS), *others], key=lambda entry: entry.name)


def measure(name: str, size: int | None = None) -> CatalogueEntry:
    """One student, built and counted at a size; None: the one that it was designed for.

    Raises:
        EngineError: as `build`.
    """
    _check_known(name)
    own = name in CIFAR_BLOCKS
    size = size or (CIFAR_SIZE if own else _timm_size(name))
    # Shapes are all that counting needs: without arithmetic a list takes seconds, not minutes.
    with torch.device("meta"):
        module = build(name, size, 3, COUNTED_CLASSES)
        macs = count_macs(module, size, 3)
    source = "punnet" if own else "timm"
    return CatalogueEntry(name=name, parameters=count_parameters(module), macs=macs, size=size, source=source)


def timed(name: str, size: int | None = None) -> CatalogueEntry:
    """One student as `measure` counts it, and timed through ONNX Runtime on this machine.

    Raises:
        EngineError: as `build`.
    """
    # Only now: it brings the exporter and onnxruntime.
    from pu_engine.student.choice import latency_ms

    entry = measure(name, size)
    with tempfile.TemporaryDirectory() as scratch:
        taken = latency_ms(name, (entry.size, 3, COUNTED_CLASSES), Path(scratch))
    return replace(entry, latency_ms=taken)


def adapt_stem(module: nn.Module, first_convs: tuple[str, ...]) -> None:
    """Keep a small image's resolution: the stem's stride 2 becomes 1 and the max-pool after it goes.

    Patch embeddings (stride 4 and more) stay: their weights are the patch.
    """
    for name in first_convs:
        conv = module.get_submodule(name)
        if not isinstance(conv, nn.Conv2d) or conv.stride != (2, 2):
            continue
        conv.stride = (1, 1)
        # Blocks with several branches build their merged convolution from their own copy of the stride.
        parts = name.split(".")[:-1]
        for depth in range(1, len(parts) + 1):
            block = module.get_submodule(".".join(parts[:depth]))
            if getattr(block, "stride", None) in (2, (2, 2)):
                block.stride = 1 if block.stride == 2 else (1, 1)  # type: ignore[assignment]
    for name, child in list(module.named_modules()):
        if name in ("maxpool", "features.pool0") and isinstance(child, nn.MaxPool2d):
            module.set_submodule(name, nn.Identity())


def _build_timm(name: str, size: int, channels: int, classes: int) -> nn.Module:
    config = _timm_config(name)
    fixed = {"img_size": size} if config.get("fixed_input_size") else {}
    module: nn.Module = _timm().create_model(name, pretrained=False, in_chans=channels, num_classes=classes, **fixed)
    if size <= SMALL_SIZE:
        first = config.get("first_conv") or ()
        adapt_stem(module, (first,) if isinstance(first, str) else tuple(first))
    return module


@functools.cache
def _timm() -> Any:
    """timm, imported late (it takes seconds) and cut off from its hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    _declare_torchvision_operators()
    import timm

    return timm


@functools.cache
def _declare_torchvision_operators() -> torch.library.Library | None:
    """Declare what torchvision expects: its PyPI wheel is built for CUDA and fails to import beside a CPU torch.

    timm imports torchvision at start (timm 1.0.31, torchvision 0.28.0). Cached: the library lives while it is held.
    """
    if torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            signature = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(signature)  # type: ignore[no-untyped-call]
    return library


@functools.cache
def _timm_names() -> frozenset[str]:
    return frozenset(_timm().list_models())


def _timm_config(name: str) -> dict[str, Any]:
    config = _timm().get_pretrained_cfg(name)
    return dict(config.to_dict()) if config is not None else {}


def _timm_size(name: str) -> int:
    return int(_timm_config(name).get("input_size", (3, 224, 224))[-1])


def _check_known(name: str) -> None:
    """Only exact names of the registry: timm also takes `hf-hub:` and `local-dir:` addresses."""
    if name in CIFAR_BLOCKS or name in _timm_names():
        return
    close = difflib.get_close_matches(name, [*CIFAR_BLOCKS, *_timm_names()], n=CLOSE_MATCHES, cutoff=0.5)
    hint = f"Close names: {', '.join(close)}." if close else "`punnet students` lists the names."
    raise EngineError("STUDENT_UNKNOWN", f"There is no student named {name[:80]!r}.", hint, name=name[:80])


def _unsupported(name: str, size: int, reason: str) -> EngineError:
    return EngineError(
        "STUDENT_UNSUPPORTED",
        f"Student {name} does not fit images of {size} x {size} pixels: {reason}.",
        "Choose another student or another size.",
        name=name,
        size=size,
    )


def main(arguments: list[str] | None = None) -> int:
    """Print students as JSON: `{"students": [...]}`, or `{"error": {...}}` and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m pu_engine.student.catalogue", description=main.__doc__)
    parser.add_argument("--json", action="store_true", required=True)
    parser.add_argument("--contains", default="", metavar="TEXT")
    parser.add_argument("--all", action="store_true", help="every student, whatever --contains says")
    parser.add_argument("--check", metavar="NAME", help="build this one and count it")
    parser.add_argument("--time", metavar="NAME", help="build this one, count it and time it")
    parser.add_argument("--size", type=int, help="of --time, in pixels")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            entries = [measure(options.check)]
        elif options.time:
            entries = [timed(options.time, options.size)]
        else:
            entries = every_student() if options.all else catalogue(options.contains)
    except EngineError as error:
        failure = {"code": error.code, "message": error.message, "remedy": error.remedy, "details": error.details}
        json.dump({"error": failure}, sys.stdout)
        return 1
    json.dump({"students": [asdict(entry) for entry in entries]}, sys.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
