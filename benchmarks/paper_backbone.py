"""The published PU classifier trained end to end, on the pools and by the figures of `benchmarks.selection`.

`python -m benchmarks.distill … --rows "whole pool" --prepare` first keeps the pools; then, on a CUDA device, `python -m
benchmarks.paper_backbone --twin FOLDER --teacher cifar10_resnet56.onnx --cache … --pools mix natural --out F.json`.

The folder is that of the teacher's intake, which holds its torch twin. The true share of the pool is given as the
prior, which a user never has: it is the method's best chance. Its scores are ranked alone, without a quota.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import distill
from benchmarks.conditions import conditions
from benchmarks.distill_images import ChosenSet, Images, load_images, read_set
from benchmarks.selection_scores import NEAR
from benchmarks.table import print_table, write_json
from pu_engine.picking.content_scores import separation
from pu_engine.picking.pu_finetuning import FineTuning, finetuned_scores
from pu_engine.progress import SilentProgress
from pu_engine.results import load
from pu_engine.twin import torch_twin
from pu_engine.types import Teacher

POOLS = ("mix", "natural", "wild")
RIGHT_SOURCE = {"mix": "mixed", "wild": "natural"}
BEST_SHARES = (0.05, 0.10, 0.20)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and score each pool and seed, print the table, write the rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper_backbone", description=__doc__)
    distill.add_setting(parser)
    parser.add_argument("--twin", type=Path, required=True, help="folder of the teacher's intake")
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=POOLS[:2])
    parser.add_argument("--fine-tuning-steps", type=int, default=FineTuning().steps)
    parser.add_argument("--originals", type=int, default=distill.ORIGINALS)
    options = parser.parse_args(arguments)
    teacher, tuning = load(Teacher, options.twin), FineTuning(steps=options.fine_tuning_steps)
    images, rows = load_images(distill.images_folder(options)), []
    for pool in options.pools:
        for seed in range(options.seeds):
            started = time.perf_counter()
            options.pool = pool
            chosen = read_set(distill.set_path(options, distill.key_of(options, "whole pool", seed)))
            labelled, _, everything = chosen.parts(images)
            right, arguable = truth(pool, chosen, images)
            prior = float(right[~arguable].mean())
            score = finetuned_scores(
                partial(torch_twin.load, options.twin), np.asarray(labelled.images), everything.images,
                teacher.preprocessing, SilentProgress(), prior=prior, seed=seed, device=torch.device(options.device),
                options=tuning,
            )  # fmt: skip
            row = {"pool": pool, "seed": seed, **figures(score, right, arguable), "prior": prior}
            rows.append(row | {"seconds": time.perf_counter() - started})
            print(rows[-1], flush=True)
    names = ("auc", *(share_name(share) for share in BEST_SHARES))
    cells = [
        [pool, *(f"{mean(r[name] for r in rows if r['pool'] == pool):.3f}" for name in (*names, "seconds"))]
        for pool in options.pools
    ]
    print_table("paper, end to end", ["pool", *names, "seconds"], cells)
    facts = conditions(teacher=options.teacher.name, seeds=options.seeds, trained_on=options.device)
    write_json(options.out, {"conditions": facts, "rows": rows})
    return 0


def truth(pool: str, chosen: ChosenSet, images: Images) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images of a pool are right to pick, and which are left out of the AUC, [N] each."""
    picked = chosen.picked
    if pool in RIGHT_SOURCE:
        right = picked.origin[:, 0] == picked.sources.index(RIGHT_SOURCE[pool])
        return right, np.zeros_like(right)
    relations = images.relations[picked.origin[:, 1]]
    return relations == "in", relations == NEAR


def figures(score: NDArray[np.float64], right: NDArray[np.bool_], arguable: NDArray[np.bool_]) -> dict[str, Any]:
    """AUC without the arguable images, and precision among the best shares of the pool."""
    best = np.argsort(-score, kind="stable")
    row: dict[str, Any] = {"auc": separation(score[right & ~arguable], score[~right & ~arguable])}
    return row | {share_name(share): float(right[best[: round(share * len(best))]].mean()) for share in BEST_SHARES}


def share_name(share: float) -> str:
    """How a precision is called."""
    return f"p_top_{round(100 * share):02}"


if __name__ == "__main__":
    raise SystemExit(main())
