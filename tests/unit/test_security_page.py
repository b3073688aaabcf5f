"""docs/security.md states the limits that the code has, and names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pu_engine import guard, pipeline
from pu_engine.imaging import images, labelled
from pu_engine.teacher import canonicalisation
from punnet.errors import TABLE
from server import audit, blob_service, blobs, confine, front, manifest, quotas

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
MODULES: dict[str, Any] = {
    "guard": guard,
    "canonicalisation": canonicalisation,
    "images": images,
    "labelled": labelled,
    "confine": confine,
    "pipeline": pipeline,
    "front": front,
    "manifest": manifest,
    "quotas": quotas,
    "audit": audit,
    "blob_service": blob_service,
    "blobs": blobs,
}
ROW = re.compile(r"^\| `([a-z_]+(?:\.\w+)+)`[^|]*\| ([^|]+) \|$", re.MULTILINE)


def value_of(name: str) -> str:
    module, *rest = name.split(".")
    found = MODULES[module]
    for part in rest:
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    return " to ".join(map(str, found)) if isinstance(found, tuple) else str(found)


def test_every_limit_of_the_page_is_that_of_the_code() -> None:
    rows = dict(ROW.findall(PAGE))
    assert rows == {name: value_of(name) for name in rows}


def test_every_limit_of_the_guard_is_on_the_page() -> None:
    limits = {f"guard.limits.{name}" for name in vars(guard.limits) if name.isupper()}
    assert limits <= set(dict(ROW.findall(PAGE)))


def test_codes_and_tests_that_the_page_names_exist() -> None:
    codes = set(
        re.findall(r"`((?:MODEL|STAGE|IMAGE|ARCHIVE|UNSUPPORTED|TOKEN|SCOPE|UNSAFE|DIGEST|ARTIFACT)_[A-Z_]+)`", PAGE)
    )
    assert len(codes) > 10
    assert codes <= set(TABLE)
    named = set(re.findall(r"`(test_\w+\.py)`", PAGE))
    assert named == {path.name for path in (ROOT / "tests" / "hostile").glob("test_*.py")} - {"test_mutations.py"}
