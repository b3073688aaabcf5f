"""Is the share of the pool that is of the labelled images' source estimated rightly, and with an honest interval?

`python -m benchmarks.prior --data ../shared/data --teacher ../shared/teachers/cifar10_resnet56.onnx --draws 20
--out F.json [--part development|report] [--cache DIR]`

Pools with known shares: images of the labelled images' source among natural images that show none of their classes. A
draw takes other labelled images, other pool images and another initialisation. The estimator is the engine's (best bin
on the source classifier's scores, bootstrap interval), next to DEDPUL and TIcE on the same scores.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.conditions import conditions
from benchmarks.selection_images import SHARDS, Sizes, first_labelled, read
from benchmarks.selection_scores import Scored, draw, open_teacher, scored
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine.picking.pool_order import clean_view_scores
from pu_engine.picking.prior import best_bin_estimate, density_ratio_estimate, prior_interval
from pu_engine.picking.tree_prior import tree_induction_estimate
from pu_engine.progress import SilentProgress
from pu_engine.scores.scorer import Scorer
from pu_engine.training.loop import repeatable

SHARES = (0.05, 0.11, 0.2, 0.5)
MOST_ERROR, MOST_WIDTH, LEAST_COVERED = 0.03, 0.10, 72 / 80

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, write the rows; 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prior", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the images, see its README.md")
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--labelled", type=int, default=100, help="labelled images a class")
    parser.add_argument("--draws", type=int, default=20, help="of each share")
    parser.add_argument("--part", choices=sorted(SHARDS), default="report")
    parser.add_argument("--pool-images", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=1, help="of the scorer")
    parser.add_argument("--cache", type=Path, default=Path(".bench/selection"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    facts = conditions(
        draws=options.draws, teacher=options.teacher.name, labelled_a_class=options.labelled, part=options.part,
        pool_images=options.pool_images,
    )  # fmt: skip
    scorer, folder = open_teacher(options.teacher, first_labelled(options.data), options.cache)
    sources = {
        name: scored(source, scorer, folder, options.threads)
        for name, source in read(options.data, options.part, Sizes(pool=options.pool_images)).items()
        if name in ("labelled", "mixed", "natural")
    }
    runs = [
        estimated(sources, scorer, options.labelled, share=share, pool_images=options.pool_images, seed=seed)
        for share in SHARES
        for seed in range(options.draws)
    ]
    rows = summary(runs)
    bars = verdicts(runs)
    keys = ("best_bin", "error", "dedpul_error", "tice_error", "covered", "width")
    cells = [[str(r["share"]), *(f"{r[key]:.3f}" for key in keys)] for r in rows]
    heads = ["true share", "best bin", "its error", "DEDPUL's error", "TIcE's error", "inside", "width"]
    print_table("Prior", heads, cells)
    print_bars(bars)
    write_json(options.out, {"conditions": facts, "rows": rows, "runs": runs, "bars": bars})
    return 0 if all(b["holds"] for b in bars) else 1


def estimated(
    sources: Mapping[str, Scored], scorer: Scorer, a_class: int, *, share: float, pool_images: int, seed: int
) -> Row:
    """One draw: the estimates and the interval."""
    own = min(len(sources["mixed"].logits), round(share * pool_images))
    sizes = Sizes(pool=round(own / share), share_mixed=share)
    with tempfile.TemporaryDirectory() as work, repeatable(threads=1):
        drawn = draw("mix", sources, a_class=a_class, sizes=sizes, seed=seed, scorer=scorer, work=Path(work))
        labelled, pool = clean_view_scores(drawn.files, seed, SilentProgress())
    interval = prior_interval(labelled, pool, np.random.default_rng(seed))
    true = float(drawn.right.mean())
    return {
        "share": share,
        "seed": seed,
        "true": true,
        "pool": len(pool),
        "best_bin": best_bin_estimate(labelled, pool).alpha,
        "dedpul": density_ratio_estimate(labelled, pool),
        "tice": tree_induction_estimate(labelled, pool, np.random.default_rng(seed)),
        "low": interval.low,
        "high": interval.high,
        "inside": interval.low <= true <= interval.high,
    }


def summary(runs: Sequence[Row]) -> list[Row]:
    """A row for each share: mean estimate, mean absolute errors, share of draws inside the interval, its mean width."""
    rows = []
    for share in dict.fromkeys(run["share"] for run in runs):
        mine = [run for run in runs if run["share"] == share]
        rows.append(
            {"share": share, "best_bin": mean(run["best_bin"] for run in mine)}
            | {"error": _error(mine, "best_bin"), "dedpul_error": _error(mine, "dedpul")}
            | {"tice_error": _error(mine, "tice")}
            | {"covered": mean(float(run["inside"]) for run in mine)}
            | {"width": mean(run["high"] - run["low"] for run in mine)}
        )
    return rows


def verdicts(runs: Sequence[Row]) -> list[Row]:
    """The bars asked of the estimate and its interval."""
    covered = mean(float(run["inside"]) for run in runs)
    return [
        bar("mean absolute error", _error(runs, "best_bin"), MOST_ERROR, at_least=False),
        bar("share of draws inside the interval", covered, LEAST_COVERED, at_least=True),
        bar("mean width of the interval", mean(run["high"] - run["low"] for run in runs), MOST_WIDTH, at_least=False),
    ]


def _error(runs: Sequence[Row], estimate: str) -> float:
    return float(mean(abs(run[estimate] - run["true"]) for run in runs))


if __name__ == "__main__":
    raise SystemExit(main())
