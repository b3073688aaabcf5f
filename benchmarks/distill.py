"""What is the choice of images worth to the student? The same student and steps on differently picked images.

`python -m benchmarks.distill --data ../shared/data --teacher ../shared/teachers/cifar10_resnet56.onnx --labelled 100
--picked 4000 --steps 1500 --seeds 3 --pool mix --out F.json [--quick] [--minutes M] [--rows ...]`

A seed redraws labelled images, pool, picks and the student's first weights; the rows of one seed are paired. Finished
runs are kept beside the cache: the same command goes on where an earlier one was stopped, and `--minutes` ends it
between two runs. Nothing is chosen on the test images. `--quick`: the pool `mix`; random, default and originals with 3
seeds, paper with 1. `--prepare` only asks the teacher and picks: what it leaves in the cache is all that
training needs, on another machine with `--device cuda` too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.conditions import conditions
from benchmarks.distill_images import ChosenSet, ask, draw_pool, is_kept, load_images, read_set
from benchmarks.distill_rows import ROWS, Picking
from benchmarks.distill_runs import STUDENTS, Store, in_time, interval, measured, ratio_interval
from benchmarks.selection import POOLS
from benchmarks.selection_images import SHARDS, Sizes
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine.training.distill_types import DistillationOptions

QUICK_SEEDS = {"random": 3, "default": 3, "originals": 3, "paper": 1}
QUICK_ORIGINALS, ORIGINALS = 8_000, 24_000
# Least difference of two rows' mean accuracy, by pool.
BARS = {
    "mix": (("default", "random", 0.03), ("default", "confidence, DFND's loss", -0.01)),
    "wild": (("default", "random", 0.03), ("default", "random, balanced", -0.01),
             ("default", "confidence, DFND's loss", -0.01)),
    "natural": (("default", "random, balanced", -0.01), ("default", "whole pool", -0.01),
                ("default", "confidence, DFND's loss", -0.01)),
}  # fmt: skip
RECIPE_BAR, LONG_STEPS, LONG_BAR = 0.06, 6000, 0.71

Run = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table, write the rows; 1 where a bar does not hold."""
    options = parsed(arguments)
    facts = conditions(
        teacher=options.teacher.name, labelled_a_class=options.labelled, picked=options.picked, steps=options.steps,
        pool=options.pool, pool_images=options.pool_images, part=options.part, threads=options.threads,
        student=options.student, trained_on=options.device, changes=list(options.set),
    )  # fmt: skip
    store = Store(options.cache / "runs")
    keys = [key_of(options, name, seed) for name, seeds in rows_of(options).items() for seed in range(seeds)]
    missing = [key for key in keys if store.finished(key) is None][options.share[0] :: options.share[1]]
    if missing:
        run_missing(options, store, sorted(missing, key=lambda key: int(key["seed"])))
    runs = [row for key in keys if (row := store.finished(key)) is not None]
    rows, bars = summary(runs), verdicts(options.pool, runs)
    show(options.pool, rows, bars)
    result = {"recovered_share": recovered(runs), "complete": len(runs) == len(keys)}
    write_json(options.out, {"conditions": facts, "rows": rows, "runs": runs, "bars": bars} | result)
    print(f"{len(runs)} of {len(keys)} runs are finished.")
    return 0 if all(b["holds"] for b in bars) else 1


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distill", description=__doc__)
    add_setting(parser)
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS), metavar="ROW")
    parser.add_argument("--originals", type=int, default=None, help="training images of the upper bound")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    if options.originals is None:
        options.originals = QUICK_ORIGINALS if options.quick else ORIGINALS
    return options


def add_setting(parser: argparse.ArgumentParser) -> None:
    """What a benchmark of many trainings is run with."""
    parser.add_argument("--data", type=Path, required=True, help="folder of the images, see its README.md")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=100, help="labelled images a class")
    parser.add_argument("--picked", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pool", choices=POOLS, default="mix")
    parser.add_argument("--pool-images", type=int, default=20_000)
    parser.add_argument("--part", choices=sorted(SHARDS), default="report")
    parser.add_argument("--minutes", type=float, default=None, help="start no run after so many")
    parser.add_argument(
        "--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="run the I-th of N parts"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--student", choices=tuple(STUDENTS), default="small", help="small: ResNet-14 on a quarter of the pixels"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="to train on")
    parser.add_argument(
        "--set", nargs="*", default=(), metavar="NAME=JSON", help="of the training, as mixup=0.2 or loss.temperature=2"
    )
    parser.add_argument("--prepare", action="store_true", help="pick and stop")
    parser.add_argument("--cache", type=Path, default=Path(".bench/distill"))
    parser.add_argument("--out", type=Path, required=True)


def rows_of(options: argparse.Namespace) -> dict[str, int]:
    """Rows to run, with their seeds."""
    return QUICK_SEEDS if options.quick else dict.fromkeys(options.rows, options.seeds)


PICKED_BY = ("teacher", "labelled", "picked", "draws", "pool", "pool_images", "part", "originals")
TRAINED_BY = ("steps", "batch_size", "changes", "threads", "student", "device")


def key_of(options: argparse.Namespace, row: str, seed: int) -> Run:
    """What a run is reused by."""
    draws = options.steps * options.batch_size
    known = vars(options) | {"teacher": options.teacher.stem, "draws": draws, "changes": sorted(options.set)}
    return {"row": row, "seed": seed} | {n: known[n] for n in (*PICKED_BY, *TRAINED_BY)}


def recipe(options: argparse.Namespace) -> DistillationOptions:
    """The training that every row starts from: the defaults, changed by `--set`."""
    made = DistillationOptions(batch_size=options.batch_size)
    for change in options.set:
        name, _, value = change.partition("=")
        part, _, of_loss = name.partition(".")
        if of_loss:
            made = replace(made, loss=replace(made.loss, **{of_loss: json.loads(value)}))
        else:
            made = replace(made, **{part: json.loads(value)})
    return made


def set_path(options: argparse.Namespace, key: Run) -> Path:
    """Where what a run is trained on is kept."""
    row = ROWS[key["row"]].picked_as or key["row"]
    known = json.dumps([row, key["seed"], *(key[n] for n in PICKED_BY)])
    return Path(options.cache) / "sets" / f"{hashlib.sha256(known.encode()).hexdigest()[:20]}.npz"


def images_folder(options: argparse.Namespace) -> Path:
    """Where the arrays of all sources are kept."""
    return Path(options.cache) / f"{options.teacher.stem}-{options.part}-{options.pool_images}-{options.originals}"


def run_missing(options: argparse.Namespace, store: Store, keys: Sequence[Run]) -> None:
    """Pick where that was not done, then train and measure each missing run."""
    choose_missing(options, [(key["row"], key) for key in keys])
    if options.prepare:
        return
    images = load_images(images_folder(options))
    for key in in_time(keys, options.minutes):
        training = ROWS[key["row"]].change(recipe(options))
        labelled, held_out, picked = read_set(set_path(options, key)).parts(images)
        found = measured(
            images, labelled, held_out, picked, training, steps=options.steps, seed=key["seed"],
            folder=store.scratch(key), threads=options.threads, student=options.student, device=options.device,
        )  # fmt: skip
        store.keep(key, found)
        print(f"{key['row']}, seed {key['seed']}: {found['accuracy']:.4f} in {found['seconds']:.0f} s", flush=True)


def choose_missing(options: argparse.Namespace, wanted: Sequence[tuple[str, Run]]) -> None:
    """Draw the pools and pick by the rows, seed by seed, unless the cache has the sets."""
    folder = images_folder(options)
    missing = [(row, key) for row, key in wanted if not set_path(options, key).is_file()]
    if is_kept(folder) and not missing:
        return
    sizes = Sizes(pool=options.pool_images)
    asked = ask(
        options.data, options.teacher, options.part, sizes=sizes, originals=options.originals, cache=options.cache,
        threads=options.threads, folder=folder,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as work:
        for seed in sorted({key["seed"] for _, key in missing}):
            pool = draw_pool(
                asked, options.pool, a_class=options.labelled, sizes=sizes, seed=seed, work=Path(work) / str(seed)
            )
            for name, key in missing:
                if key["seed"] == seed and not set_path(options, key).is_file():
                    training = ROWS[name].change(recipe(options))
                    picking = Picking(
                        asked=asked, pool=pool, count=options.picked, seed=seed, options=training, steps=options.steps
                    )
                    chosen = ChosenSet(labelled=pool.labelled, picked=ROWS[name].pick(picking))
                    chosen.write(set_path(options, key))
                    print(f"{name}, seed {seed}: {len(chosen.picked.origin):,} picked", flush=True)


def summary(runs: Sequence[Run]) -> list[Run]:
    """For each row the mean over its seeds, the spread, and what it was trained on."""
    rows = []
    for name in dict.fromkeys(run["row"] for run in runs):
        mine = [run for run in runs if run["row"] == name]
        accuracies = [run["accuracy"] for run in mine]
        rows.append(
            {
                "row": name,
                "seeds": len(mine),
                "accuracy": mean(accuracies),
                "spread": max(accuracies) - min(accuracies),
                "agreement": mean(run["agreement"] for run in mine),
                "n": round(mean(run["n"] for run in mine)),
                "steps": mine[0]["steps"],
                "seconds": mean(run["seconds"] for run in mine),
                "per_class": [mean(column) for column in zip(*(run["per_class"] for run in mine), strict=True)],
            }
        )
    return rows


def paired(runs: Sequence[Run], one: str, other: str) -> list[float]:
    """Accuracy of one row less the other's, for the seeds that both have."""
    found = {(run["row"], run["seed"]): run["accuracy"] for run in runs}
    seeds = sorted({seed for _, seed in found})
    return [found[one, s] - found[other, s] for s in seeds if (one, s) in found and (other, s) in found]


def recovered(runs: Sequence[Run]) -> dict[str, float] | None:
    """The share of the way from random picks to the originals that the default makes."""
    found = {(run["row"], run["seed"]): run["accuracy"] for run in runs}
    seeds = [
        s for s in sorted({s for _, s in found}) if all((r, s) in found for r in ("default", "random", "originals"))
    ]
    if not seeds:
        return None
    gained = [found["default", s] - found["random", s] for s in seeds]
    possible = [found["originals", s] - found["random", s] for s in seeds]
    low, high = ratio_interval(gained, possible)
    return {"value": mean(gained) / mean(possible), "low": low, "high": high, "seeds": len(seeds)}


def verdicts(pool: str, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The bars that the finished runs speak of, each with the interval of its paired differences."""
    found = []
    for one, other, least in (*BARS[pool], ("default", "paper", RECIPE_BAR)):
        differences = paired(runs, one, other)
        if differences:
            low, high = interval(differences)
            verdict = bar(f"{pool}: {one} - {other}", mean(differences), least, at_least=True)
            found.append(verdict | {"low": low, "high": high, "seeds": len(differences)})
    long = [run["accuracy"] for run in runs if run["row"] == "default" and run["steps"] == LONG_STEPS]
    if pool == "natural" and long:
        found.append(bar(f"natural: default at {LONG_STEPS} steps", mean(long), LONG_BAR, at_least=True))
    return found


def show(pool: str, rows: Sequence[Run], bars: Sequence[dict[str, Any]]) -> None:
    """Print the table and the bars."""
    cells = [
        [r["row"], f"{r['n']:,}", str(r["seeds"]), f"{r['accuracy']:.4f}", f"{r['spread'] / 2:.4f}",
         f"{r['agreement']:.4f}", f"{r['seconds']:.0f}"]
        for r in rows
    ]  # fmt: skip
    print_table(f"Pool {pool}", ["picked by", "images", "seeds", "accuracy", "±", "agreement", "seconds"], cells)
    print_bars(bars)


if __name__ == "__main__":
    raise SystemExit(main())
