"""Where a benchmark ran: what its figures must be read with."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from pu_engine.pages.report_data import cpu_model
from pu_engine.pipeline import installed_versions

ROOT = Path(__file__).resolve().parents[1]


def conditions(**more: Any) -> dict[str, Any]:
    """Cores, processor, versions and commit; `more` adds the benchmark's own, for instance seeds."""
    return {
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "cpu": cpu_model(),
        "platform": platform.platform(),
        "versions": installed_versions(),
        "commit": commit(),
        **more,
    }


def commit() -> str:
    """The checkout's commit, with "+" where files differ from it; "" outside of a checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()
