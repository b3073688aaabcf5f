"""A bundle to engines on the device: build, check parity, time, report.

`python build_on_target.py` in an unpacked bundle runs this, and `python -m exporters.device_build FOLDER` where Punnet
is installed. Needs TensorRT or TensorRT-RTX, and NumPy. Without a CUDA device TensorRT-RTX still builds, and the report
says that nothing was measured. Bundles carry this module.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters.cuda_driver import Device, Stream, find_device
from exporters.device_report import NO_DEVICE, DeviceReport, VariantReport, compare, recommend
from exporters.engine_builder import EngineFacts, EngineRequest, die_with, missing
from exporters.engine_child import cached_engine
from exporters.engine_run import LoadedEngine
from exporters.errors import ExportError

MANIFEST, REPORT = "manifest.json", "device-report.json"
MANIFEST_SCHEMA = 1
MEASURE_SECONDS = 2.0
EXIT_NOTHING = 1
Say = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOptions:
    """How to build.

    Args:
        capabilities: TensorRT-RTX builds for these; empty means for the device here, or without one for the target's.
        variants: names; empty means all of the bundle.
        timing_cache: a folder of TensorRT's timings, kept between builds.
    """

    capabilities: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    seconds: float = MEASURE_SECONDS
    timing_cache: Path | None = None


def read_bundle(folder: Path) -> dict[str, Any]:
    """A bundle's manifest, after every file's digest was checked.

    Raises:
        ExportError: there is no manifest of a form that this version reads, or a file differs.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ExportError(f"{folder} is no unpacked bundle ({error}).", "Unpack bundle-<target>.zip first.") from error
    if manifest["schema"] != MANIFEST_SCHEMA:
        raise ExportError(
            f"The bundle has schema {manifest['schema']}, this program reads {MANIFEST_SCHEMA}.",
            "Run the bundle's own build_on_target.py.",
        )
    for row in manifest["files"]:
        path = folder / row["path"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
            raise ExportError(f"{row['path']} is not the file that the bundle was made with.", "Unpack it again.")
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """A bundle that was checked, and where and how its engines are made."""

    folder: Path
    manifest: Mapping[str, Any]
    out: Path
    device: Device | None
    options: DeviceOptions
    say: Say


def build(folder: Path, out: Path, options: DeviceOptions, say: Say) -> DeviceReport:
    """Build and check every variant; writes engines, the inspector's words and the report to `out`.

    Raises:
        ExportError: the bundle is damaged, its runtime is not installed, or it is for none that runs engines.
    """
    started = time.monotonic()
    manifest = read_bundle(folder)
    target = manifest["target"]
    if not target["capabilities"]:
        raise ExportError(
            f"The target {target['name']} runs no engines.", "Use its files as README.md says.", target=target["name"]
        )
    lacking = missing(target["runtime"])
    if lacking:
        raise ExportError(f"{lacking}.", "Install it here, then run this again.", builder=target["runtime"])
    work = _Work(folder=folder, manifest=manifest, out=out, device=find_device(), options=options, say=say)
    rows = [row for row in manifest["variants"] if not options.variants or row["name"] in options.variants]
    reports = []
    for index, row in enumerate(rows):
        say(f"building {row['name']}", index, len(rows))
        reports.append(_variant(work, row))
    recommended, why = recommend(reports)
    report = DeviceReport(
        target=target["name"],
        runtime=target["runtime"],
        device=work.device,
        variants=tuple(reports),
        recommended=recommended,
        why=why,
        not_measured="" if work.device else NO_DEVICE,
        seconds=time.monotonic() - started,
    )
    (out / REPORT).write_text(json.dumps(asdict(report), indent=1))
    say("done", len(rows), len(rows))
    return report


def _variant(work: _Work, row: Mapping[str, Any]) -> VariantReport:
    target, device, options = work.manifest["target"], work.device, work.options
    here = (device.capability,) if device else tuple(target["capabilities"])
    request = EngineRequest(
        onnx=str(work.folder / row["path"]),
        builder=target["runtime"],
        capabilities=options.capabilities or (here if target["runtime"] == "tensorrt_rtx" else ()),
        batches=tuple(work.manifest["batches"]),
        timing_cache=str(options.timing_cache) if options.timing_cache else None,
    )
    facts = {"name": row["name"], "precision": row["precision"], "onnx_sha256": row["sha256"]}
    try:
        path, engine = cached_engine(request, work.out, on_beat=work.say)
        measured = _measure(work, path, engine, row)
    except ExportError as error:
        return VariantReport(**facts, refused=str(error))
    return VariantReport(**facts, engine=engine, path=path.name, **measured)


def _measure(work: _Work, path: Path, engine: EngineFacts, row: Mapping[str, Any]) -> dict[str, Any]:
    """Parity and times of an engine on the device here."""
    if work.device is None:
        return {}
    inputs = np.load(work.folder / work.manifest["parity"]["inputs"], allow_pickle=False)
    expected = np.load(work.folder / row["expected"], allow_pickle=False)
    batches = sorted(set(engine.batches))
    with Stream(work.device) as stream:
        loaded = LoadedEngine(engine.builder, path, device=work.device, stream=stream, max_batch=engine.batches[-1])
        parity = compare(expected, [loaded.logits(inputs, batch) for batch in batches], row["precision"])
        latencies = tuple(loaded.measure(inputs, batch, work.options.seconds) for batch in batches)
        layers = path.with_suffix(".layers.json")
        layers.write_text(json.dumps(loaded.layers(), indent=1))
    return {"parity": parity, "latencies": latencies, "layers": layers.name}


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what the command line says; exit status 1 where no engine came of it."""
    parser = argparse.ArgumentParser(prog="build_on_target.py", description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder of an unpacked bundle")
    parser.add_argument("--out", type=Path, help="where engines and device-report.json go [BUNDLE/engines]")
    parser.add_argument("--variant", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--capability", action="append", default=[], help="for instance SM89; TensorRT-RTX only")
    parser.add_argument("--seconds", type=float, default=MEASURE_SECONDS, help="of measuring for each batch")
    parser.add_argument("--timing-cache", type=Path, help="TensorRT's timings, kept between builds")
    parser.add_argument("--lines", action="store_true", help="progress as JSON lines")
    parser.add_argument("--parent", type=int, help="end with this process, which started this one")
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with(options.parent)
    out = options.out or options.bundle / "engines"
    out.mkdir(parents=True, exist_ok=True)
    chosen = DeviceOptions(
        capabilities=tuple(options.capability),
        variants=tuple(options.variant),
        seconds=options.seconds,
        timing_cache=options.timing_cache,
    )
    try:
        report = build(options.bundle, out, chosen, _say_lines if options.lines else _say_text)
    except ExportError as error:
        if options.lines:
            refusal = {"message": error.message, "remedy": error.remedy}
            print(json.dumps({"refusal": refusal}), flush=True)
        print(f"build_on_target.py: {error}", file=sys.stderr)
        return EXIT_NOTHING
    if not options.lines:
        print(summary(report))
    return 0 if any(row.engine for row in report.variants) else EXIT_NOTHING


def summary(report: DeviceReport) -> str:
    """The report in a few lines."""
    lines = [f"{report.target} on {report.device.name if report.device else 'no device'}"]
    for row in report.variants:
        if row.engine is None:
            lines.append(f"  {row.name}: no engine. {row.refused}")
            continue
        said = f"  {row.name}: {row.path}, {row.engine.size / 1e6:.1f} MB, built in {row.engine.seconds:.1f} s"
        if row.parity is not None:
            said += f", agreement {row.parity.agreement:.3f} ({'passed' if row.parity.passed else 'FAILED'})"
        lines.append(said + "".join(f", batch {t.batch}: {t.p50_ms:.3f} ms" for t in row.latencies))
    lines.append(f"take: {report.recommended or 'none'} ({report.why})")
    return "\n".join(lines)


def _say_lines(what: str, done: int, total: int) -> None:
    print(json.dumps({"what": what, "done": done, "total": total}), flush=True)


def _say_text(what: str, done: int, total: int) -> None:
    if what.startswith("building"):
        print(f"{what} ({done + 1} of {total})", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
