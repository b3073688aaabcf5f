"""Which score finds the images worth picking, and does the default take the right one?

`python -m benchmarks.selection --data ../shared/data --teacher ../shared/teachers/cifar10_resnet56.onnx --labelled 100
--seeds 3 --out F.json [--part development|report] [--cache DIR]`

Three pools. natural: Tiny-ImageNet; right are images that show one of the teacher's classes. mix: a fifth are images of
the labelled images' own source; right are these. wild: three quarters are junk; right are the others. A seed draws the
labelled images, what is mixed in, the junk and every initialisation. Rules are chosen on the part `development`; the
part `report` has other shards, other training images and other kinds of junk. `truth.csv` measures only.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.conditions import conditions
from benchmarks.selection_images import SHARDS, Sizes, first_labelled, read
from benchmarks.selection_methods import METHODS, measured
from benchmarks.selection_scores import DRAWN_FROM, Scored, draw, open_teacher, scored
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine.scores.scorer import Scorer

POOLS = ("natural", "mix", "mix unseen", "mix refiled", "wild")
FIGURES = ("auc", "p_top_05", "p_top_10", "p_top_20", "class_entropy", "seconds")
# The PU order is for pools that hold the labelled images' own source; among junk either order may be the better one.
RIGHT_BRANCH = {"natural": "content", "mix": "pu"}
BARS = {
    100: (
        ("mix", "auc", 0.985),
        ("mix", "p_top_20", 0.88),
        ("natural", "auc", 0.71),
        ("natural", "p_top_10", 0.31),
        ("wild", "p_top_10", 0.61),
    ),
    20: (("mix", "auc", 0.96),),
}
POOL_IMAGES = 20_000

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, write the rows; 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.selection", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the images, see its README.md")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=100, help="labelled images a class")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=sorted(SHARDS), default="report")
    parser.add_argument("--pool-images", type=int, default=POOL_IMAGES)
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=POOLS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--threads", type=int, default=1, help="of the scorer")
    parser.add_argument(
        "--cache", type=Path, default=Path(".bench/selection"), help="the teacher's scores are kept here"
    )
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    facts = conditions(
        seeds=options.seeds, teacher=options.teacher.name, labelled_a_class=options.labelled, part=options.part,
        pool_images=options.pool_images,
    )  # fmt: skip
    sizes = Sizes(pool=options.pool_images)
    scorer, folder = open_teacher(options.teacher, first_labelled(options.data), options.cache)
    wanted = {"labelled", "natural", *(name for pool in options.pools for name in DRAWN_FROM[pool])}
    sources = {
        name: scored(source, scorer, folder, options.threads)
        for name, source in read(options.data, options.part, sizes).items()
        if name in wanted
    }
    runs = run_all(options, sources, scorer, sizes)
    rows = summary(runs)
    bars = verdicts(rows, runs, options.labelled)
    show(rows, runs)
    print_bars(bars)
    write_json(options.out, {"conditions": facts, "rows": rows, "runs": runs, "bars": bars})
    return 0 if all(b["holds"] for b in bars) else 1


def run_all(options: argparse.Namespace, sources: Mapping[str, Scored], scorer: Scorer, sizes: Sizes) -> list[Row]:
    """Every method on every pool and seed; the same draw for all methods."""
    runs = []
    for pool in options.pools:
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as work:
                drawn = draw(
                    pool, sources, a_class=options.labelled, sizes=sizes, seed=seed, scorer=scorer, work=Path(work)
                )
                for method in options.methods:
                    row = measured(method, drawn, seed)
                    runs.append({"pool": pool, "method": method, "seed": seed, **row})
    return runs


def summary(runs: Sequence[Row]) -> list[Row]:
    """For each pool and method every figure's mean over the seeds and its spread, largest less least."""
    rows = []
    for pool, method in dict.fromkeys((run["pool"], run["method"]) for run in runs):
        mine = [run for run in runs if (run["pool"], run["method"]) == (pool, method)]
        row: Row = {"pool": pool, "method": method}
        for figure in FIGURES:
            values = [run[figure] for run in mine]
            row[figure] = {"mean": mean(values), "spread": max(values) - min(values)}
        rows.append(row)
    return rows


def verdicts(rows: Sequence[Row], runs: Sequence[Row], labelled: int) -> list[dict[str, Any]]:
    """The bars asked of the default, those of them that were run."""
    default = {row["pool"]: row for row in rows if row["method"] == "default"}
    found = [
        bar(f"{pool}: {figure}", default[pool][figure]["mean"], bound, at_least=True)
        for pool, figure, bound in BARS.get(labelled, ())
        if pool in default
    ]
    for pool in sorted(RIGHT_BRANCH.keys() & default.keys()):
        branches = [run["branch"] for run in runs if (run["pool"], run["method"]) == (pool, "default")]
        right = mean(float(branch == RIGHT_BRANCH[pool]) for branch in branches)
        found.append(bar(f"{pool}: {RIGHT_BRANCH[pool]} taken", right, 1.0, at_least=True))
    return found


def show(rows: Sequence[Row], runs: Sequence[Row]) -> None:
    """Print a table for each pool, and what each default was decided by."""
    for pool in dict.fromkeys(row["pool"] for row in rows):
        cells = [
            [row["method"], *(f"{row[f]['mean']:.3f} ±{row[f]['spread'] / 2:.3f}" for f in FIGURES[:-1]),
             f"{row['seconds']['mean']:.1f}"]
            for row in rows if row["pool"] == pool
        ]  # fmt: skip
        print_table(f"Pool {pool}", ["score", *FIGURES], cells)
    decided = [[r["pool"], str(r["seed"]), r["branch"], r["why"]] for r in runs if r["method"] == "default"]
    print_table("Default", ["pool", "seed", "branch", "why"], decided)


if __name__ == "__main__":
    raise SystemExit(main())
