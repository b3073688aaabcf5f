"""What stage bundling exchanges."""

from __future__ import annotations

from dataclasses import dataclass, field

from pu_engine.jsonform import MEASURED
from pu_engine.types import Folder, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class BundlingInputs:
    """Make engines and bundles of the variants that verification let pass."""

    gathering: Folder
    distillation: Folder
    export: Folder
    verification: Folder
    targets: tuple[str, ...] = ("cpu", "rtx")
    parity_images: str = "pool"  # pool | generated | own
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One zip for one target: the same bytes each time, but for those with `.ort` files."""

    target: str
    path: str
    device: str  # in words
    variants: tuple[str, ...]  # in the target's order of preference
    size: int = field(metadata=MEASURED)
    sha256: str = field(metadata=MEASURED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundles:
    """Files: `bundle-<target>.zip` for each target, and the engines that could be built here."""

    bundles: tuple[Bundle, ...]
    engines: tuple[Variant, ...] = field(default=(), metadata=MEASURED)
    warnings: tuple[str, ...] = ()
