"""Does an accepted job survive what goes wrong? Seeded random faults while small jobs run on a real server.

`python -m benchmarks.faults --rounds 100 --seed 0 --out F.json`

Each round has a fresh server, a user's work (an upload, a pool, an inspection, a compression, its download, and the
jobs again; with `--work pool` the pool is only verified and shown, which needs no torch) and one fault of
`benchmarks.fault_injection` at a random moment. It is survived where every accepted job SUCCEEDED with the digests of
an undisturbed run or FAILED with an error that says why, the same job sent afterwards succeeds, and no process, slot,
file or damage is left. The file is written after each round, and the same command goes on with the rounds it lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import random
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.conditions import conditions
from benchmarks.fault_injection import FAULTS, ON_RAY, unavailable
from benchmarks.fault_round import calm_digests, run_round
from benchmarks.fault_work import PARTS, make_subject
from benchmarks.ray_cluster import started_cluster
from benchmarks.table import bar, print_bars, print_table, write_json

ROUNDS = 100
NODES = 2  # of the cluster that rounds on Ray run on


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds that the file lacks, print the table; 1 where a job was lost or something was left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", choices=sorted(PARTS), default="compression", help="what the user does")
    parser.add_argument("--only", nargs="+", choices=sorted(FAULTS), help="these faults alone")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    faults = tuple(options.only or FAULTS)
    missing = {name: why for name, why in unavailable().items() if name in faults}
    for name, why in missing.items():
        print(f"left out: {name}: {why}", flush=True)
    if len(missing) == len(faults):
        parser.error("none of these faults can be injected here")
    result = run_rounds(options.out, rounds=options.rounds, seed=options.seed, part=options.work, only=faults)
    show(result)
    return 0 if all(b["holds"] for b in result["bars"]) else 1


def run_rounds(out: Path, *, rounds: int, seed: int, part: str, only: Sequence[str]) -> dict[str, Any]:
    """The whole result; raises ValueError where the file holds rounds of another seed, work or version."""
    missing = unavailable()
    planned = plan(rounds, seed, [name for name in FAULTS if name in only and name not in missing])
    with tempfile.TemporaryDirectory(prefix="pn-subject-") as scratch, contextlib.ExitStack() as held:
        cluster = functools.cache(lambda: held.enter_context(started_cluster(NODES)))  # one for all rounds on Ray
        subject = make_subject(Path(scratch))
        kept = _kept(out, seed, part)
        if not kept:
            reference, seconds = calm_digests(subject, part)
            where = conditions(seed=seed, work=part)
            kept = {"conditions": where, "reference": reference, "calm_seconds": seconds, "rows": []}
        done = {row["round"] for row in kept["rows"]}
        for number, fault in enumerate(planned):
            if number in done:
                continue
            row = run_round(
                subject,
                part,
                fault,
                seed=seed * 1_000_000 + number,
                reference=kept["reference"],
                cluster=cluster() if fault in ON_RAY else None,
            )
            kept["rows"].append({"round": number, **row})
            write_json(out, kept)
            print(
                f"round {number}: {fault} {row['injection']} {row['seconds']} s {row['problems'] or 'survived'}",
                flush=True,
            )
    result = {**kept, **summary(kept["rows"], missing)}
    write_json(out, result)
    return result


def plan(rounds: int, seed: int, faults: Sequence[str]) -> list[str]:
    """The fault of each round: each comes once in as many rounds as there are faults, in a random order."""
    generator = random.Random(seed)
    planned: list[str] = []
    while len(planned) < rounds:
        planned += generator.sample(faults, len(faults))
    return planned[:rounds]


def summary(rows: Sequence[Mapping[str, Any]], missing: Mapping[str, str]) -> dict[str, Any]:
    """Keys per fault: injected, survived, lost; and the bars."""
    faults: dict[str, dict[str, Any]] = {}
    for name in FAULTS:
        hit = [row for row in rows if row["fault"] == name and row["hit"]]
        faults[name] = {
            "injected": len(hit),
            "survived": sum(not row["problems"] and not row["lost"] for row in hit),
            "lost": sum(row["lost"] for row in hit),
        }
        if name in missing:
            faults[name]["not_run_here"] = missing[name]
    lost = sum(row["lost"] for row in rows)
    problems = sum(bool(row["problems"]) for row in rows)
    bars = [
        bar("jobs_lost", lost, 0, at_least=False),
        bar("rounds_with_problems", problems, 0, at_least=False),
    ]
    return {"faults": faults, "bars": bars}


def show(result: Mapping[str, Any]) -> None:
    """The table for people."""
    rows = [
        [name, str(f["injected"]), str(f["survived"]), str(f["lost"]), f.get("not_run_here", "")]
        for name, f in result["faults"].items()
    ]
    print_table("Faults", ["fault", "injected", "survived", "jobs lost", "not run here"], rows)
    print_bars(result["bars"])


def _stop(number: int, _: object) -> None:
    """Leave through every `with`: servers are stopped and disks unmounted; the rounds so far are in the file."""
    raise SystemExit(128 + number)


def _kept(out: Path, seed: int, part: str) -> dict[str, Any]:
    if not out.exists():
        return {}
    kept: dict[str, Any] = json.loads(out.read_text())
    before, now = kept["conditions"], conditions()
    if (before["seed"], before["work"], before["versions"]) != (seed, part, now["versions"]):
        raise ValueError(f"{out} holds rounds of another seed, other work or other versions: name a new file")
    return {name: kept[name] for name in ("conditions", "reference", "calm_seconds", "rows")}


if __name__ == "__main__":
    raise SystemExit(main())
