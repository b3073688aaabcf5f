"""Which setting of the training helps? One change at a time, on the same picks and steps.

`python -m benchmarks.ablations --data ../shared/data --teacher ../shared/teachers/cifar10_resnet56.onnx --pool mix
--steps 1500 --seeds 3 --out F.json [--minutes M] [--rows ...]`

Picks are the default's. Settings are compared on the part `development`, where choices may be made; finished runs are
kept as in `benchmarks.distill`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import torch

from benchmarks import distill
from benchmarks.conditions import conditions
from benchmarks.distill_images import SIDE, load_images, read_set
from benchmarks.distill_runs import Store, in_time, interval, measured
from benchmarks.selection_images import first_labelled
from benchmarks.selection_scores import open_teacher
from benchmarks.table import print_table, write_json
from pu_engine.scores.scorer import Scorer
from pu_engine.training.augmentation import augment
from pu_engine.training.batches import BANK_STREAM, Part, derived_seed
from pu_engine.training.distill_types import DistillationOptions, DistillLoss

BASE = "default"
SAME_VIEW = "same view (bank of 4)"
BANK_VIEWS = 4

Change = Callable[[DistillationOptions], DistillationOptions]


def setting(**changes: Any) -> Change:
    """Options with some of them changed."""
    return lambda options: replace(options, **changes)


def loss(**changes: Any) -> Change:
    """The loss with some of its parts changed."""
    return setting(loss=DistillLoss(**changes))


ABLATIONS: Mapping[str, Change] = {
    BASE: setting(),
    **{f"class weights {rule}": setting(class_weights=rule) for rule in ("paper", "two_sided", "chi2", "kl")},
    "DKD": loss(kl=0.0, dkd=1.0),
    "DIST": loss(kl=0.0, dist=1.0, labels=1.0),
    "KL and DIST": loss(dist=1.0),
    "standardised logits": loss(kl=0.0, standardised=9.0),
    "hints": loss(hints=1.0),
    "DFND's noise": loss(noisy_labels=1.0),
    "no labels": loss(labels=0.0),
    **{f"T = {t:g}": loss(temperature=t) for t in (1.0, 2.0, 8.0)},
    **{f"labelled share {share:g}": setting(labelled_share=share) for share in (0.05, 0.1, 0.5)},
    "balanced draws": setting(draws="balanced"),
    "mixup .2": setting(mixup=0.2),
    "CutMix 1": setting(cutmix=1.0),
    "averaged weights .999": setting(average_decay=0.999),
    "clipped at 5": setting(clip_norm=5.0),
    "batch 64, twice the steps": setting(batch_size=64),
    "rate .05": setting(learning_rate=0.05),
    "rate .2": setting(learning_rate=0.2),
    SAME_VIEW: setting(targets="views", views=BANK_VIEWS),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table, write the rows."""
    options = parsed(arguments)
    facts = conditions(
        teacher=options.teacher.name, labelled_a_class=options.labelled, picked=options.picked, steps=options.steps,
        pool=options.pool, pool_images=options.pool_images, part=options.part, threads=options.threads,
        student=options.student, trained_on=options.device, changes=list(options.set),
    )  # fmt: skip
    store = Store(options.cache / "ablations")
    keys = [distill.key_of(options, name, seed) for seed in range(options.seeds) for name in options.rows]
    missing = [key for key in keys if store.finished(key) is None][options.share[0] :: options.share[1]]
    if missing:
        run_missing(options, store, missing)
    runs = [row for key in keys if (row := store.finished(key)) is not None]
    rows = distill.summary(runs)
    for row in rows:
        gained = distill.paired(runs, row["row"], BASE)
        low, high = interval(gained) if gained else (0.0, 0.0)
        row["gained"] = {"mean": mean(gained) if gained else 0.0, "low": low, "high": high, "seeds": len(gained)}
    cells = [
        [r["row"], str(r["seeds"]), f"{r['accuracy']:.4f}", f"{r['gained']['mean']:+.4f}",
         f"{r['gained']['low']:+.4f} to {r['gained']['high']:+.4f}", f"{r['seconds']:.0f}"]
        for r in rows
    ]  # fmt: skip
    print_table(f"Pool {options.pool}", ["change", "seeds", "accuracy", "gained", "interval", "seconds"], cells)
    write_json(options.out, {"conditions": facts, "rows": rows, "runs": runs, "complete": len(runs) == len(keys)})
    print(f"{len(runs)} of {len(keys)} runs are finished.")
    return 0


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ablations", description=__doc__)
    distill.add_setting(parser)
    parser.add_argument("--rows", nargs="+", choices=tuple(ABLATIONS), default=tuple(ABLATIONS), metavar="ROW")
    parser.set_defaults(part="development", originals=10)
    return parser.parse_args(arguments)


def run_missing(options: argparse.Namespace, store: Store, keys: Sequence[distill.Run]) -> None:
    """Train and measure each missing run on the default's picks."""
    distill.choose_missing(options, [(BASE, key | {"row": BASE}) for key in unique_seeds(keys)])
    if options.prepare:
        return
    images = load_images(distill.images_folder(options))
    for key in in_time(keys, options.minutes):
        training = ABLATIONS[key["row"]](distill.recipe(options))
        # As many images seen: fewer a step take more steps.
        steps = options.steps * options.batch_size // training.batch_size
        chosen = read_set(distill.set_path(options, key | {"row": BASE}))
        labelled, held_out, picked = chosen.parts(images)
        if training.targets == "views":
            scorer, _ = open_teacher(options.teacher, first_labelled(options.data), options.cache)
            labelled, picked = (bank(scorer, part, key["seed"], n) for n, part in enumerate((labelled, picked)))
        found = measured(
            images, labelled, held_out, picked, training, steps=steps, seed=key["seed"], folder=store.scratch(key),
            threads=options.threads, student=options.student, device=options.device,
        )  # fmt: skip
        store.keep(key, found)
        print(f"{key['row']}, seed {key['seed']}: {found['accuracy']:.4f} in {found['seconds']:.0f} s", flush=True)


def unique_seeds(keys: Sequence[distill.Run]) -> list[distill.Run]:
    """One key of each seed."""
    return list({key["seed"]: key for key in keys}.values())


def bank(scorer: Scorer, part: Part, seed: int, stream: int) -> Part:
    """A part with a bank of crops and mirrors, the teacher run on each."""
    views: list[np.ndarray[Any, Any]] = []
    for view in range(BANK_VIEWS):
        generator = torch.Generator().manual_seed(derived_seed(seed, BANK_STREAM, stream, view))
        pixels = torch.from_numpy(np.ascontiguousarray(part.images))
        views.append(augment(pixels, torch.zeros(len(part), 2, 0), generator)[0].numpy())
    batch = scorer.batch
    logits = [
        np.concatenate([scorer.logits(view[i : i + batch]) for i in range(0, len(view), batch)])
        if len(view) else np.zeros((0, scorer.teacher.classes), np.float32)
        for view in views
    ]  # fmt: skip
    shape = (len(part), BANK_VIEWS, SIDE, SIDE, 3)
    return replace(part, images=np.stack(views, axis=1).reshape(shape), targets=np.stack(logits, axis=1))


if __name__ == "__main__":
    raise SystemExit(main())
