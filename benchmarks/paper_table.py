"""The paper's comparison on a CUDA device: CIFAR-10, ResNet-34 to ResNet-18, a pool of Tiny-ImageNet images.

`python -m benchmarks.paper_pack --data ../shared/data --out packed`, then on the device, as often as it takes:
`python -m benchmarks.paper_table --packed packed --work work --out F.json --minutes 9`. `--seeds 0` trains the teacher
alone; after that, several processes can each take a `--share`.

Needs torch, timm, numpy and Pillow. The teacher is trained here first, then each student: KD on the originals, random
picks, DFND's, the published recipe's (`paper`) and the default's, all with one teacher, at the last epoch. An epoch is
one pass over as many images as CIFAR-10 has. Finished runs are kept, those under way go on from their checkpoint.
`--smoke` runs the same code on a CPU in a minute, on noise of three colours and the smallest networks.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.conditions import conditions
from benchmarks.distill import recipe
from benchmarks.distill_rows import DFND_LOSS, paper
from benchmarks.distill_runs import Store, in_time, interval
from benchmarks.paper_pack import SIDE, unpack
from benchmarks.step import bare, timed_rate
from benchmarks.table import bar, print_bars, print_table, write_json
from pu_engine.picking.attention_head import paper_scores
from pu_engine.picking.content_scores import (
    background_gaussian,
    class_gaussians,
    confidence,
    content_score,
    energy,
    moments,
    relative_mahalanobis,
)
from pu_engine.picking.pool_order import MOST_BELIEVED
from pu_engine.picking.pu_classifier import beliefs, source_inputs, source_scores
from pu_engine.picking.pu_folds import make_folds
from pu_engine.picking.quota import class_quotas, pick_balanced, pick_top, random_score
from pu_engine.picking.source_test import gate_is_open, source_test
from pu_engine.progress import SilentProgress
from pu_engine.student.catalogue import build
from pu_engine.student.features import FeatureTap
from pu_engine.student.spec import IMAGENET_MEAN, IMAGENET_STD, describe
from pu_engine.training.batches import Part, Sampler
from pu_engine.training.distill_types import DistillationOptions, DistillLoss
from pu_engine.training.evaluation import model_input, predict
from pu_engine.training.loop import Task, train
from pu_engine.training.targets import LiveTargets
from pu_engine.types import Preprocessing, TrainingSet

METHODS = ("originals", "random", "DFND", "paper", "default")
LABELS_ALONE = DistillLoss(kl=0.0, labels=1.0)
GOAL_GAP = 0.0038
CHECKPOINT_STEPS = 200
BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the comparison is."""

    teacher: str
    student: str
    classes: int
    teacher_epochs: int
    picked: int
    epoch: int  # images of one


PAPER = Scale(teacher="resnet34", student="resnet18", classes=10, teacher_epochs=40, picked=20_000, epoch=50_000)
SMOKE = Scale(teacher="cifar_resnet8", student="cifar_resnet8", classes=3, teacher_epochs=4, picked=60, epoch=96)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """All images, uint8 [n, 32, 32, 3], with labels where they have some; and the trained teacher."""

    train: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    pool: NDArray[np.uint8]
    labelled: NDArray[np.int64]  # rows of train, by class in turns or not: the first of each class are taken
    device: torch.device
    scale: Scale


def main() -> int:
    """Run what is missing within the minutes, print the table, write the rows; 1 where a bar does not hold."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper_table", description=__doc__)
    parser.add_argument("--packed", type=Path)
    parser.add_argument("--work", type=Path, default=Path(".bench/paper"))
    parser.add_argument("--labelled", type=int, default=100, help="a class")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher-epochs", type=int, default=PAPER.teacher_epochs)
    parser.add_argument("--picked", type=int, default=PAPER.picked)
    parser.add_argument("--minutes", type=float, default=None, help="start no run after so many")
    parser.add_argument(
        "--share", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="run the I-th of N parts"
    )
    parser.add_argument("--set", nargs="*", default=(), metavar="NAME=JSON", help="of the training, as mixup=0.2")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.smoke:
        torch.set_num_threads(1)  # two wait for each other by spinning, on networks as small as these
    scale = replace(PAPER, teacher_epochs=options.teacher_epochs, picked=options.picked)
    data = smoke_data() if options.smoke else read(options.packed, scale)
    epochs = 1 if options.smoke else options.epochs
    facts = conditions(
        device=torch.cuda.get_device_name(0) if data.device.type == "cuda" else "cpu", smoke=options.smoke,
        labelled_a_class=options.labelled, epochs=epochs, picked=data.scale.picked,
    )  # fmt: skip
    store = Store(options.work / "runs")
    teacher, teacher_facts = trained_teacher(data, options.work)
    keys = [
        {"method": method, "seed": seed, "labelled": options.labelled, "epochs": epochs, "smoke": options.smoke,
         "picked": data.scale.picked, "teacher_epochs": data.scale.teacher_epochs, "changes": sorted(options.set)}
        for seed in range(options.seeds) for method in METHODS
    ]  # fmt: skip
    missing = [k for k in keys if store.finished(k) is None][options.share[0] :: options.share[1]]
    for key in in_time(missing, options.minutes):
        found = student_run(data, teacher, key, store.scratch(key))
        store.keep(key, found)
        print(f"{key['method']}, seed {key['seed']}: {found['accuracy']:.4f}, {found['seconds']:.0f} s", flush=True)
    runs = [row for key in keys if (row := store.finished(key)) is not None]
    rows, bars = summary(runs), verdicts(runs, teacher_facts["accuracy"])
    show(rows, bars, teacher_facts)
    write_json(options.out, {"conditions": facts, "teacher": teacher_facts, "rows": rows, "runs": runs, "bars": bars})
    return 0 if options.smoke or all(b["holds"] for b in bars) else 1


def read(folder: Path, scale: Scale) -> Data:
    """The packed images."""
    train, train_labels = unpack(folder, "train")
    test, test_labels = unpack(folder, "test")
    return Data(
        train=train, train_labels=train_labels, test=test, test_labels=test_labels, pool=unpack(folder, "pool")[0],
        labelled=np.load(folder / "labelled.npy"), scale=scale,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )  # fmt: skip


def smoke_data() -> Data:
    """Noisy images of one colour each: three classes that the smallest network learns in seconds."""
    generator = np.random.default_rng(0)

    def images(n: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        labels = np.arange(n) % SMOKE.classes
        colours = 60 + 140 * np.eye(3)[labels]
        noise = generator.normal(0, 40, (n, SIDE, SIDE, 3))
        return np.clip(colours[:, None, None] + noise, 0, 255).astype(np.uint8), labels

    train, train_labels = images(240)
    test, test_labels = images(90)
    return Data(
        train=train, train_labels=train_labels, test=test, test_labels=test_labels, pool=images(180)[0],
        labelled=np.arange(60), device=torch.device("cpu"), scale=SMOKE,
    )  # fmt: skip


def trained_teacher(data: Data, work: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The teacher, trained on all labels once and kept; its facts."""
    work.mkdir(parents=True, exist_ok=True)
    path, scale = work / f"{scale_name(data.scale)}.safetensors", data.scale
    torch.manual_seed(0)
    module = build(scale.teacher, SIDE, 3, scale.classes).to(data.device)
    started = time.perf_counter()
    if path.is_file():
        module.load_state_dict(load_file(path))
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    else:
        whole = part_of(data.train, data.train_labels, scale.classes)
        options = DistillationOptions(loss=LABELS_ALONE, labelled_share=1.0, batch_size=batch_of(data))
        steps = scale.teacher_epochs * scale.epoch // options.batch_size
        task = task_of(data, whole, whole, options, steps=steps, seed=0, network=module, key="teacher")
        train(module, task, work / "teacher.checkpoints", SilentProgress())
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)
    module.eval()
    accuracy = accuracy_of(data, module)
    return module, {"name": scale.teacher, "accuracy": accuracy, "minutes": (time.perf_counter() - started) / 60}


def scale_name(scale: Scale) -> str:
    """What the teacher's file is called."""
    return f"teacher-{scale.teacher}-{scale.teacher_epochs}"


def batch_of(data: Data) -> int:
    """Images a step."""
    return min(BATCH, data.scale.epoch // 10)


def student_run(data: Data, teacher: nn.Module, key: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Pick, train a student with the teacher live beside it, and measure it at its last step."""
    started, scale, seed = time.perf_counter(), data.scale, int(key["seed"])
    rows = first_of_each(data.train_labels[data.labelled], int(key["labelled"]))
    labelled = asked(teacher, data, data.train[data.labelled[rows]], data.train_labels[data.labelled[rows]])
    options = recipe(argparse.Namespace(batch_size=batch_of(data), set=key["changes"]))
    if key["method"] == "paper":
        options = paper(options)
    if key["method"] == "DFND":
        options = replace(options, loss=DFND_LOSS)
    picked = picked_for(str(key["method"]), data, teacher, labelled, seed)
    torch.manual_seed(seed)
    module = build(scale.student, SIDE, 3, scale.classes).to(data.device)
    steps = int(key["epochs"]) * scale.epoch // options.batch_size
    task = task_of(data, labelled, picked, options, steps=steps, seed=seed, network=module, key=folder.name)
    live = LiveTargets(Sampler(labelled, picked, options, seed, device=data.device), asker(teacher, task), 1.0)
    before = time.perf_counter()
    train(module, replace(task, source=live), folder, SilentProgress())
    ended = time.perf_counter()
    shutil.rmtree(folder)
    rate = timed_rate(lambda: bare(build(scale.student, SIDE, 3, scale.classes).to(data.device), task, data.device))
    return {
        "accuracy": accuracy_of(data, module), "n": len(picked), "steps": steps, "seconds": ended - started,
        "images_per_second": steps * options.batch_size / (ended - before),
        "bare_images_per_second": options.batch_size / rate,
    }  # fmt: skip


def picked_for(method: str, data: Data, teacher: nn.Module, labelled: Part, seed: int) -> Part:
    """The picked part of a method, at the scale's count."""
    if method == "originals":
        return asked(teacher, data, data.train, None)
    pool = asked(teacher, data, data.pool, None)
    mean_logits = pool.targets.mean(axis=1)
    classes, everything = mean_logits.argmax(axis=1), np.ones(len(pool), np.bool_)
    if method == "random":
        mask = pick_top(random_score(len(pool), seed), data.scale.picked, everything)
    elif method == "DFND":
        mask = pick_top(confidence(pool.targets), data.scale.picked, everything)
    else:
        score = pool_score(method, labelled, pool, seed)
        if method == "paper":
            mask = pick_top(score, data.scale.picked, everything)
        else:
            available = np.bincount(classes, minlength=data.scale.classes)
            quotas = class_quotas(available, np.ones(data.scale.classes, np.bool_), data.scale.picked, seed)
            mask = pick_balanced(score, classes, quotas, everything)
    rows = np.flatnonzero(mask)
    return Part(images=pool.images[rows], targets=pool.targets[rows], labels=np.zeros(0, np.int64))


def pool_score(method: str, labelled: Part, pool: Part, seed: int) -> NDArray[np.float64]:
    """The published head for `paper`; for `default` the source classifier where the pool holds the source, else the
    teacher's own scores.
    """
    if labelled.features is None or pool.features is None:
        raise ValueError("the parts have no features")
    own, others = labelled.features.astype(np.float32), pool.features.astype(np.float32)
    inputs = source_inputs(others, pool.targets)
    folds = make_folds(
        source_inputs(own, labelled.targets), labelled.labels, lambda: [inputs], np.random.default_rng(seed)
    )
    own_score, score = source_scores(folds, seed, SilentProgress())
    prior = source_test(0, own_score, score).prior
    if method == "paper":
        features = make_folds(own, labelled.labels, lambda: [others], np.random.default_rng(seed))
        return paper_scores(features, prior.alpha, seed, SilentProgress())
    if gate_is_open(prior):
        belief = beliefs(score, min(prior.alpha, MOST_BELIEVED))
        return source_scores(folds, seed, SilentProgress(), belief=belief)[1]
    background = background_gaussian(moments([others]))
    near = relative_mahalanobis(others, class_gaussians(own, labelled.labels), background)
    return content_score(energy(pool.targets), near, near)


def asked(teacher: nn.Module, data: Data, images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> Part:
    """Images with the teacher's logits of each and its mirror, and its features."""
    tap, how = FeatureTap(teacher), preprocessing()
    logits: list[NDArray[np.float32]] = []
    features = np.zeros((len(images), tap.width), np.float16)
    for mirrored in (False, True):
        found = []
        for start in range(0, len(images), BATCH):
            rows = images[start : start + BATCH]
            pixels = torch.from_numpy(np.ascontiguousarray(rows[:, :, ::-1] if mirrored else rows)).to(data.device)
            with torch.no_grad():
                found.append(teacher(model_input(pixels, how)).float().cpu().numpy())
            taken = tap.taken().float().cpu().numpy()
            if not mirrored:
                features[start : start + BATCH] = taken
        logits.append(np.concatenate(found))
    tap.remove()
    return Part(
        images=images, targets=np.stack(logits, axis=1), features=features,
        labels=np.zeros(0, np.int64) if labels is None else labels,
    )  # fmt: skip


def asker(teacher: nn.Module, task: Task) -> Callable[[torch.Tensor], torch.Tensor]:
    """The teacher as a live source asks it."""
    device = next(teacher.parameters()).device

    def ask(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            logits: torch.Tensor = teacher(model_input(images.to(device), task.preprocessing))
        return logits.float()

    return ask


def part_of(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> Part:
    """Labelled images whose targets are their labels, for a teacher's own training."""
    targets = F.one_hot(torch.from_numpy(labels), classes).float().numpy()
    return Part(images=images, targets=np.stack([targets, targets], axis=1), labels=labels)


def task_of(
    data: Data, labelled: Part, picked: Part, options: DistillationOptions, *, steps: int, seed: int,
    network: nn.Module, key: str,
) -> Task:  # fmt: skip
    """A training; what is watched is no part of the test images."""
    spec_of = TrainingSet(
        size=SIDE, fit="stretch", channels=3, classes=data.scale.classes, labelled=len(labelled), picked=len(picked),
        held_out=0, parity=0, parity_unpicked=0,
    )  # fmt: skip
    names = tuple(map(str, range(data.scale.classes)))
    watched = Part(images=labelled.images[:64], targets=labelled.targets[:64], labels=labelled.labels[:64])
    spec = describe("student", network.cpu(), spec_of, names)
    network.to(data.device)
    return Task(
        labelled=labelled, picked=picked, held_out=watched, preprocessing=spec.preprocessing, options=options,
        steps=steps, seed=seed, checkpoint_steps=CHECKPOINT_STEPS, key=key,
        teacher_accuracy=float((labelled.targets[:, 0].argmax(axis=1) == labelled.labels).mean()),
    )  # fmt: skip


def preprocessing() -> Preprocessing:
    """How teacher and students here see an image: as every student of ours does."""
    return Preprocessing(
        layout="NCHW", channels="RGB", scale=1 / 255, mean=IMAGENET_MEAN, std=IMAGENET_STD, dtype="float32",
        height=SIDE, width=SIDE, fit="stretch",
    )  # fmt: skip


def accuracy_of(data: Data, module: nn.Module) -> float:
    """On the test images."""
    answers = predict(module, data.test, preprocessing()).argmax(dim=1).numpy()
    return float((answers == data.test_labels).mean())


def first_of_each(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Rows of the first images of each class, in order."""
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[:count] for k in np.unique(labels)]))


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each method's mean and spread."""
    rows = []
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        accuracies = [run["accuracy"] for run in mine]
        rows.append(
            {"method": method, "seeds": len(mine), "accuracy": mean(accuracies),
             "spread": max(accuracies) - min(accuracies), "n": mine[0]["n"], "steps": mine[0]["steps"],
             "minutes": mean(run["seconds"] for run in mine) / 60,
             "images_per_second": mean(run["images_per_second"] for run in mine),
             "bare_images_per_second": mean(run["bare_images_per_second"] for run in mine)}
        )  # fmt: skip
    return rows


def verdicts(runs: list[dict[str, Any]], teacher: float) -> list[dict[str, Any]]:
    """The default beside `paper` and DFND, by the low end of its interval, and the gap to the teacher."""
    found = {(run["method"], run["seed"]): run["accuracy"] for run in runs}
    bars = []
    for other in ("paper", "DFND"):
        gained = [found["default", s] - a for (m, s), a in found.items() if m == other and ("default", s) in found]
        if gained:
            bars.append(bar(f"default - {other}, low end", interval(gained)[0], 0.0, at_least=True))
    own = [accuracy for (method, _), accuracy in found.items() if method == "default"]
    if own:
        bars.append(bar("teacher - default", teacher - mean(own), GOAL_GAP, at_least=False))
    return bars


def show(rows: list[dict[str, Any]], bars: list[dict[str, Any]], teacher: Mapping[str, Any]) -> None:
    """Print the table."""
    cells = [["teacher", "", f"{teacher['accuracy']:.4f}", "", f"{teacher['minutes']:.1f}", "", ""]]
    cells += [
        [r["method"], f"{r['n']:,}", f"{r['accuracy']:.4f}", f"{r['spread'] / 2:.4f}", f"{r['minutes']:.1f}",
         f"{r['images_per_second']:,.0f}", f"{r['bare_images_per_second']:,.0f}"]
        for r in rows
    ]  # fmt: skip
    heads = ["picked by", "images", "accuracy", "±", "minutes", "images/s", "bare loop's"]
    print_table("CIFAR-10 through Tiny-ImageNet", heads, cells)
    print_bars(bars)


if __name__ == "__main__":
    raise SystemExit(main())
