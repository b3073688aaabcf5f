"""Mutants of small and real teachers against the oracle: `python -m tests.hostile.fuzz --count 100000`.

Each job is a confined process. What kills its process or does not end is contained and saved to `.fuzz/`; an exception
that is no EngineError, or a guard that contradicts itself, is a defect: it is saved, printed, and the exit status is 1.
What a piece of 2,000 found is kept, too: the same command with the same `--seed` goes on where one was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hostile.seed_models import labelled_tar, seed_bytes

ROOT = Path(__file__).resolve().parents[2]
SAVED = ROOT / ".fuzz"
REAL_BYTES = 130_000  # larger ones spend the time on weights
REAL_TEACHERS = ROOT.parent / "shared" / "teachers"
CPU_SECONDS = 24 * 3600
PIECE = 2000


@dataclass(slots=True)
class Findings:
    """What came of the mutants so far."""

    ends: Counter[str] = field(default_factory=Counter)  # CLEAN or code -> mutants
    accepted: int = 0  # by the guard
    contained: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def add(self, other: Findings) -> None:
        self.ends += other.ends
        self.accepted += other.accepted
        self.contained += other.contained
        self.broken += other.broken

    @property
    def examined(self) -> int:
        return self.ends.total() + len(self.contained) + len(self.broken)


def as_json(findings: Findings) -> dict[str, Any]:
    """What is kept of a piece."""
    return {
        "ends": dict(findings.ends), "accepted": findings.accepted, "contained": findings.contained,
        "broken": findings.broken,
    }  # fmt: skip


def kept_findings(path: Path) -> Findings | None:
    """What an earlier run found in a piece; None where it did not come to its end."""
    if not path.is_file():
        return None
    kept = json.loads(path.read_text())
    return Findings(**kept | {"ends": Counter(kept["ends"])})


def models(*, real: bool) -> dict[str, bytes]:
    """The seeds by name; with the small ones of the real teachers where they are at hand."""
    found = seed_bytes()
    if real and REAL_TEACHERS.is_dir():
        small = [path for path in REAL_TEACHERS.glob("*.onnx") if path.stat().st_size <= REAL_BYTES]
        found |= {path.stem: path.read_bytes() for path in small if not path.stem.endswith("extdata")}
    return found


def fuzz(seeds: dict[str, bytes], *, seed: int, first: int, count: int, jobs: int) -> Findings:
    """Examine `count` mutants from index `first` on, in `jobs` confined processes."""
    bounds = [first + count * job // jobs for job in range(jobs + 1)]
    total = Findings()
    with ThreadPoolExecutor(jobs) as pool:
        for findings in pool.map(lambda job: _job(seeds, seed, bounds[job], bounds[job + 1]), range(jobs)):
            total.add(findings)
    return total


def _job(seeds: dict[str, bytes], seed: int, start: int, stop: int) -> Findings:
    folder = Path(tempfile.mkdtemp(prefix="punnet-fuzz-"))
    try:
        (folder / "seeds").mkdir()
        for name, data in seeds.items():
            (folder / "seeds" / f"{name}.onnx").write_bytes(data)
        (folder / "images.tar").write_bytes(labelled_tar())
        reader, writer = os.pipe()
        with open(folder / "stderr", "wb") as errors:
            command = _command(folder, f"{str(folder)!r}, {seed}, {start}, {stop}, {writer}")
            process = subprocess.Popen(command, pass_fds=(writer,), stdout=subprocess.DEVNULL, stderr=errors)
        os.close(writer)
        with os.fdopen(reader, "rb") as lines:
            findings = findings_of(map(json.loads, lines), seed)
        if process.wait() != 0 or findings.examined != stop - start:
            text = (folder / "stderr").read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{findings.examined} of {stop - start} examined, status {process.returncode}: {text}")
        return findings
    finally:
        shutil.rmtree(folder)


def _command(folder: Path, arguments: str) -> list[str]:
    confine = [sys.executable, "-I", "-m", "server.confine", "--workdir", str(folder)]
    limits = ["--read", str(ROOT), "--cpu-seconds", str(CPU_SECONDS)]
    imports = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.hostile import oracle"
    program = f"{imports}; oracle.main({arguments})"
    return [*confine, *limits, "--", sys.executable, "-I", "-c", program]


def findings_of(lines: Iterable[Mapping[str, Any]], seed: int) -> Findings:
    """What the lines of one process say; models of which it died, and defects, are saved."""
    findings, step = Findings(), ""
    for line in lines:
        if "step" in line:
            step = line["step"]
            findings.accepted += step == "run"
            continue
        if "end" in line:
            findings.ends[line["end"]] += 1
            continue
        which = f"mutant {line['index']} of {line['source']}, seed {seed}"
        if "died" in line:
            what = f"{line['died']} in {step}: {which}"
            # The guard runs no model: it has nothing to die of.
            (findings.broken if step == "guard" else findings.contained).append(what)
        else:
            what = f"{which}:\n{line['broken']}"
            findings.broken.append(what)
        SAVED.mkdir(exist_ok=True)
        (SAVED / f"{seed}-{line['index']}.onnx").write_bytes(bytes.fromhex(line["data"]))
        (SAVED / f"{seed}-{line['index']}.txt").write_text(what + "\n")
    return findings


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz as the command line says, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="index of the first mutant")
    parser.add_argument("--seed", type=int, default=None, help="drawn and printed where it is not given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    seeds = models(real=True)
    print(f"seed {seed}: {options.count} mutants of {len(seeds)} models in {options.jobs} jobs", flush=True)
    findings, started = Findings(), time.monotonic()
    for first in range(options.first, options.first + options.count, PIECE):
        count = min(PIECE, options.first + options.count - first)
        kept = SAVED / f"{seed}-{first}-{count}.json"
        found = kept_findings(kept)
        if found is None:
            found = fuzz(seeds, seed=seed, first=first, count=count, jobs=options.jobs)
            SAVED.mkdir(exist_ok=True)
            kept.write_text(json.dumps(as_json(found)))
        findings.add(found)
        minutes = (time.monotonic() - started) / 60
        print(f"{findings.examined:,} of {options.count:,} in {minutes:.1f} minutes", flush=True)
    print(f"{findings.accepted} of {findings.examined} passed the guard")
    for end, number in findings.ends.most_common():
        print(f"{number:8} {end}")
    print(f"{len(findings.contained):8} contained")
    print("\n".join(findings.contained[:50]))
    print(f"{len(findings.broken):8} broken promises")
    print("\n".join(findings.broken[:20]))
    return 1 if findings.broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
