"""What this machine can build engines with and for, as JSON: `python -I -m exporters.device_facts`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from exporters.cuda_driver import Device, find_device
from exporters.engine_builder import BUILDERS, missing, version
from exporters.targets import targets


def device_facts() -> dict[str, Any]:
    """Builders with their versions, the CUDA device, and the targets that both serve."""
    builders = {name: version(name) for name in BUILDERS if missing(name) is None}
    device = find_device()
    return {
        "builders": builders,
        "device": asdict(device) if device else None,
        "targets": served_targets(set(builders), device),
    }


def served_targets(builders: set[str], device: Device | None) -> list[str]:
    """Targets whose builder is here and whose devices are like the one here; none without a device."""
    if device is None:
        return []
    return [t.name for t in targets().values() if t.runtime in builders and device.capability in t.capabilities]


if __name__ == "__main__":
    json.dump(device_facts(), sys.stdout)
