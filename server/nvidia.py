"""What NVIDIA's driver shows of its devices on this machine, and which files a process needs to use them."""

from __future__ import annotations

from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/gpus")
DEVICES = Path("/dev")
# Where the driver looks the machine up when a process opens a device.
FACTS = (Path("/sys/devices"), Path("/sys/bus/pci/devices"), Path("/sys/module/nvidia"))


def gpu_models(driver: Path = DRIVER) -> list[str]:
    """The model of each GPU that the driver lists; none where there is no driver."""
    found = []
    for folder in sorted(driver.glob("*")):
        facts = dict(line.partition(":")[::2] for line in (folder / "information").read_text().splitlines())
        found.append(facts.get("Model", "NVIDIA").strip())
    return found


def device_files(devices: Path = DEVICES) -> tuple[Path, ...]:
    """The driver's device files, `nvidia0`, `nvidiactl`, `nvidia-uvm` and so on."""
    return tuple(sorted(devices.glob("nvidia*")))
