"""The lines between the rooms, and how large a room may grow."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "onnx", "onnx_ir", "onnxruntime", "tensorrt", "tensorrt_rtx", "timm", "ray", "numpy"}
BANNED = {
    "punnet": HEAVY | {"server", "pu_engine", "exporters"},
    "server": HEAVY | {"exporters", "pu_engine"},
    "pu_engine": {"grpc", "tensorrt", "tensorrt_rtx", "punnet", "server"},
    "exporters": {"grpc", "punnet", "server", "pu_engine"},
}
ALLOWED: dict[str, tuple[str, ...]] = {"server": ("pu_engine.pipeline",)}
RAY_DRIVER = Path("server/runners/ray_driver.py")  # a process of its own
PACKAGES = tuple(BANNED)
VAGUE = {"utils", "util", "helper", "helpers", "manager", "handler", "handlers", "common", "misc", "processor"}
FILE_LINES = 500
FUNCTION_LINES = 60


def sources(*packages: str) -> Iterator[Path]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "v1" not in path.parts:
                yield path


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_follow_the_arrows(package: str) -> None:
    allowed = ALLOWED.get(package, ())
    bad = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(package)
        for name in imported_modules(path)
        if name.split(".")[0] in BANNED[package] and not name.startswith(allowed)
        if (name.split(".")[0], path.relative_to(ROOT)) != ("ray", RAY_DRIVER)
    ]
    assert bad == []


def test_pipeline_needs_only_the_standard_library() -> None:
    roots = {name.split(".")[0] for name in imported_modules(ROOT / "pu_engine" / "pipeline.py")}
    assert roots <= set(sys.stdlib_module_names)


def test_files_and_functions_stay_small() -> None:
    bad = []
    for path in sources(*PACKAGES, "benchmarks"):
        text = path.read_text()
        if len(text.splitlines()) > FILE_LINES:
            bad.append(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    bad.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert bad == []


def test_modules_have_noun_names_that_shadow_nothing() -> None:
    names = {path.stem: path.relative_to(ROOT) for path in sources(*PACKAGES) if not path.stem.startswith("__")}
    vague = [str(p) for name, p in names.items() if VAGUE & set(name.split("_"))]
    assert vague == []
    assert {name for name in names if name in sys.stdlib_module_names} <= {"types"}


def test_packages_are_at_most_two_levels_deep() -> None:
    assert [p for p in sources(*PACKAGES) if len(p.relative_to(ROOT).parts) > 3] == []


def test_library_code_asserts_nothing_and_swallows_nothing() -> None:
    bad = []
    for path in sources(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Assert):
                bad.append(f"{where} assert")
            if isinstance(node, ast.ExceptHandler):
                if node.type is None:
                    bad.append(f"{where} bare except")
                if all(isinstance(statement, ast.Pass) for statement in node.body):
                    bad.append(f"{where} except: pass")
    assert bad == []


def test_every_code_that_the_engine_raises_stands_in_the_table() -> None:
    from punnet.errors import TABLE

    raised = {
        (match, str(path.relative_to(ROOT)))
        for path in sources("pu_engine", "exporters", "server")
        for match in re.findall(r'"([A-Z]+(?:_[A-Z]+)+)"', path.read_text())
        if match.split("_")[0] in {code.split("_")[0] for code in TABLE}
    }
    unknown = {(code, path) for code, path in raised if code not in TABLE and _raised_as_error(code, path)}
    assert unknown == set()


def _raised_as_error(code: str, path: str) -> bool:
    text = (ROOT / path).read_text()
    return re.search(rf'(EngineError|ExportError|abort|failure|error)\w*\(\s*"{code}"', text) is not None


def test_nothing_names_a_machine_or_a_registry() -> None:
    words = re.compile(r"/work/|/root/|pypi\.org|download\.pytorch|registry\.npmjs")
    texts = [p for folder in (*PACKAGES, "benchmarks", "docs", "tools") for p in (ROOT / folder).rglob("*")]
    files = [p for p in texts if p.suffix in {".py", ".md", ".sh", ".html", ".json"}] + list(ROOT.glob("*.*"))
    bad = [str(p.relative_to(ROOT)) for p in files if p.is_file() and words.search(p.read_text())]
    assert bad == []
