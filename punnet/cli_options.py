"""The options that commands share, each in one place."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from punnet.client import Client
from punnet.errors import make_error
from punnet.options import CompressOptions, InspectOptions, names

# What `--train` sets, with the kind of its value.
TRAINING: Mapping[str, Callable[[str], Any]] = {
    "draws": str, "teacher_targets": str, "views": int, "mixup": float, "cutmix": float, "clip_norm": float,
    "average_decay": float, "precision": str, "compiled": bool, "quantisation_training_steps": int,
}  # fmt: skip
MOST_IMAGES = 2**62
ONNX_FILES = ("fp32", "fp16", "int8-cpu", "int8-trt")
LOSS_PARTS = ("kl", "dkd", "dist", "standardised", "hints", "noisy_labels")


def numbers(text: str | None) -> list[float] | None:
    """Comma-separated numbers, for instance `0.485,0.456,0.406`."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a list of numbers separated by commas") from error


def class_counts(settings: list[str] | None) -> dict[str, int] | None:
    """Images by class, of `CLASS=N` settings; the last one of a class counts."""
    found = {}
    for setting in settings or ():
        name, equals, count = setting.rpartition("=")
        if not (equals and name and count.isdecimal() and int(count) <= MOST_IMAGES):
            raise typer.BadParameter(f"{setting!r} is not CLASS=N with a whole number of images")
        found[name] = int(count)
    return found or None


def parts(text: str | None) -> list[str] | None:
    """Comma-separated words, for instance `fp32,int8-cpu`."""
    return None if text is None else [part.strip() for part in text.split(",")]


def lines(text: str | None) -> list[str] | None:
    """The lines of the UTF-8 text file of this name, without what is empty at its end.

    Raises:
        InvalidRequest: REQUEST_INVALID where it can't be read, has none, or has an empty one before others.
    """
    if text is None:
        return None
    try:
        content = Path(text).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"it is no UTF-8 at byte {error.start}"
        raise _no_names(text, f"{text} can't be read: {why}.") from error
    found = [line.strip() for line in content.rstrip().split("\n")]
    if "" in found:
        raise _no_names(text, f"Line {found.index('') + 1} of {text} is empty.")
    return found


def training(settings: Iterable[str]) -> dict[str, Any]:
    """The client's keywords of `--train NAME=VALUE`; parts of the loss come together in one.

    Raises:
        InvalidRequest: REQUEST_INVALID for an unknown name, or a value that is none of its kind.
    """
    found: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        kind = float if name.removeprefix("loss.") in LOSS_PARTS and name.startswith("loss.") else TRAINING.get(name)
        try:
            if kind is None:
                raise ValueError("no such setting")
            read = value.lower() in ("true", "yes", "1") if kind is bool else kind(value)
        except ValueError as error:
            raise make_error(
                "REQUEST_INVALID",
                f"--train {setting} can't be read: {error}.",
                f"Take NAME=VALUE with one of {', '.join(TRAINING)}, or loss.PART with {', '.join(LOSS_PARTS)}.",
                {"option": "--train", "value": setting},
            ) from error
        if name.startswith("loss."):
            found.setdefault("loss", {})[name.removeprefix("loss.")] = read
        else:
            found[name] = read
    return found


def _no_names(file: str, message: str) -> Exception:
    return make_error(
        "REQUEST_INVALID",
        message,
        "Give --class-names a text file with one name a line, in the order of the teacher's outputs.",
        {"path": file},
    )


def _choice(keyword: str, what: str) -> str:
    """Help of an option with a fixed choice. The names are checked with the request, for every kind of client."""
    return f"{what}: {', '.join(names(keyword))}."


_TEACHER, _SELECTION, _TRAINING, _RESULT = "Teacher's input", "Selection", "Training", "Result"

Server = Annotated[
    str | None,
    typer.Option(
        "--server", envvar="PUNNET_SERVER", help="https://host:port, host:port or unix:/path; else a private server."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", envvar="PUNNET_DATA", help="Data folder of the private server [~/.local/share/punnet]."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

TeacherFile = Annotated[Path, typer.Argument(metavar="TEACHER.onnx", help="The teacher, as ONNX.")]
Images = Annotated[Path, typer.Option("--images", metavar="DIR", help="A folder with a folder of images a label.")]
PoolName = Annotated[str, typer.Option("--pool", metavar="NAME", help="The pool of unlabelled images.")]
TeacherOrNone = Annotated[
    Path | None, typer.Argument(metavar="TEACHER.onnx", help="The teacher, as ONNX; needed without --from.")
]
ImagesOrNone = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", help="A folder with a folder of images a label; needed without --from."),
]
PoolOrNone = Annotated[
    str | None,
    typer.Option("--pool", metavar="NAME", help="The pool of unlabelled images; needed without --from."),
]
FromJob = Annotated[
    str | None,
    typer.Option("--from", metavar="JOB", help="A job again: its teacher, images, pool and options, but for yours."),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Another option for --from, e.g. steps=3000; may be repeated."),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or the start of one.")]
RequestId = Annotated[
    str | None, typer.Option("--request-id", help="The same request with the same id gives the same job.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Every random choice follows from it.")]

Layout = Annotated[
    str | None, typer.Option("--layout", rich_help_panel=_TEACHER, help=_choice("layout", "Order of axes"))
]
Channels = Annotated[
    str | None,
    typer.Option("--channels", rich_help_panel=_TEACHER, help=_choice("channels", "Order of channels")),
]
Scale = Annotated[
    float | None, typer.Option("--scale", rich_help_panel=_TEACHER, help="Factor on the pixel, 0 to 255.")
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", callback=numbers, rich_help_panel=_TEACHER, help="One a channel, separated by commas."),
]
Std = Annotated[
    str | None,
    typer.Option("--std", callback=numbers, rich_help_panel=_TEACHER, help="One a channel, separated by commas."),
]
InputHeight = Annotated[int | None, typer.Option("--input-height", rich_help_panel=_TEACHER, help="Pixels.")]
InputWidth = Annotated[int | None, typer.Option("--input-width", rich_help_panel=_TEACHER, help="Pixels.")]
Fit = Annotated[
    str | None, typer.Option("--fit", rich_help_panel=_TEACHER, help=_choice("fit", "How images are resized"))
]
Taps = Annotated[
    list[str] | None,
    typer.Option(
        "--tap",
        metavar="NAME",
        rich_help_panel=_TEACHER,
        help="A tensor to take as features, in place of those that are chosen; may be repeated.",
    ),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        "--class-names",
        metavar="FILE",
        callback=lines,
        rich_help_panel=_TEACHER,
        help="A name a line, in the order of the teacher's outputs.",
    ),
]

Student = Annotated[
    str | None,
    typer.Option("--student", rich_help_panel=_TRAINING, help="A name of `punnet students`, a timm model, or `auto`."),
]
Size = Annotated[int | None, typer.Option("--size", rich_help_panel=_TRAINING, help="Student's input side, pixels.")]
MaxParameters = Annotated[
    int | None, typer.Option("--max-parameters", rich_help_panel=_TRAINING, help="For --student auto.")
]
MaxMacs = Annotated[int | None, typer.Option("--max-macs", rich_help_panel=_TRAINING, help="For --student auto.")]
MaxLatency = Annotated[
    float | None, typer.Option("--max-latency-ms", rich_help_panel=_TRAINING, help="For --student auto; one image.")
]
MaxBytes = Annotated[
    int | None, typer.Option("--max-bytes", rich_help_panel=_TRAINING, help="For --student auto; float32 weights.")
]
Steps = Annotated[
    int | None, typer.Option("--steps", rich_help_panel=_TRAINING, help="Optimiser steps, by the effort.")
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", rich_help_panel=_TRAINING, help="Images a step [128].")]
LearningRate = Annotated[
    float | None, typer.Option("--learning-rate", rich_help_panel=_TRAINING, help="Peak learning rate [0.1].")
]
Temperature = Annotated[
    float | None, typer.Option("--temperature", rich_help_panel=_TRAINING, help="Of the softened distributions [4].")
]
LabelledShare = Annotated[
    float | None,
    typer.Option("--labelled-share", rich_help_panel=_TRAINING, help="Labelled images' share of a batch [0.25]."),
]
LabelWeight = Annotated[
    float | None,
    typer.Option("--label-weight", rich_help_panel=_TRAINING, help="Weight of the labels' cross-entropy [0.1]."),
]
ClassWeights = Annotated[
    str | None,
    typer.Option(
        "--class-weights", rich_help_panel=_TRAINING, help=_choice("class_weights", "Against another class balance")
    ),
]
Radius = Annotated[
    float | None, typer.Option("--radius", rich_help_panel=_TRAINING, help="Of the class weights' ball [0.05].")
]

Score = Annotated[
    str | None,
    typer.Option("--score", rich_help_panel=_SELECTION, help=_choice("score", "What orders the pool")),
]
Rule = Annotated[
    str | None,
    typer.Option("--rule", rich_help_panel=_SELECTION, help=_choice("rule", "How picks follow from it")),
]
Picks = Annotated[
    int | None, typer.Option("--picks", rich_help_panel=_SELECTION, help="Images to pick; else by the training.")
]
Threshold = Annotated[
    float | None, typer.Option("--threshold", rich_help_panel=_SELECTION, help="Quantile, for --rule threshold.")
]
Prior = Annotated[
    float | None, typer.Option("--prior", rich_help_panel=_SELECTION, help="Share of positives in the pool.")
]

ClassFloors = Annotated[
    list[str] | None,
    typer.Option(
        "--floor",
        metavar="CLASS=N",
        callback=class_counts,
        rich_help_panel=_SELECTION,
        help="Fewest picks of a class; `*` is every labelled class not named; may be repeated.",
    ),
]
ClassCaps = Annotated[
    list[str] | None,
    typer.Option(
        "--cap",
        metavar="CLASS=N",
        callback=class_counts,
        rich_help_panel=_SELECTION,
        help="Most picks of a class, likewise.",
    ),
]
KeepLookAlikes = Annotated[
    bool,
    typer.Option("--keep-look-alikes", rich_help_panel=_SELECTION, help="Pick images that look alike, too."),
]
Excluded = Annotated[
    Path | None,
    typer.Option(
        "--exclude",
        metavar="DIR",
        rich_help_panel=_SELECTION,
        help="Images that must not be picked, your test images for instance; nor what looks like them.",
    ),
]

Effort = Annotated[
    str | None,
    typer.Option(
        "--effort",
        rich_help_panel=_TRAINING,
        help=_choice("effort", "1,500, 6,000 or 24,000 steps, where none are named"),
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option("--max-minutes", "--minutes", rich_help_panel=_TRAINING, help="As many steps as fit, by a timed one."),
]
StudentWeights = Annotated[
    Path | None,
    typer.Option(
        "--student-weights",
        metavar="FILE",
        rich_help_panel=_TRAINING,
        help="Start from these, for instance another job's student.safetensors, to train it on.",
    ),
]
Train = Annotated[
    list[str] | None,
    typer.Option(
        "--train",
        metavar="NAME=VALUE",
        rich_help_panel=_TRAINING,
        help=f"May be repeated. {', '.join(TRAINING)}, or loss.PART with PART of {', '.join(LOSS_PARTS)}.",
    ),
]

Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        rich_help_panel=_RESULT,
        help="cpu and rtx unless stated; may be repeated. `punnet doctor` lists them.",
    ),
]
MaxBatch = Annotated[
    int | None, typer.Option("--max-batch", rich_help_panel=_RESULT, help="Largest batch of engines [64].")
]
ParityImages = Annotated[
    str | None,
    typer.Option(
        "--parity-images",
        rich_help_panel=_RESULT,
        help=_choice("parity_images", "Those that a bundle carries, `own` being your labelled ones"),
    ),
]
Variants = Annotated[
    str | None,
    typer.Option(
        "--variants",
        callback=parts,
        rich_help_panel=_RESULT,
        help=f"Files to make, separated by commas: {', '.join(ONNX_FILES)} [those that the targets use]; openvino, "
        "executorch.",
    ),
]
IncludePreprocessing = Annotated[
    bool,
    typer.Option("--include-preprocessing", rich_help_panel=_RESULT, help="Files take uint8 pixels [N, H, W, C]."),
]
Softmax = Annotated[bool, typer.Option("--softmax", rich_help_panel=_RESULT, help="Files give probabilities.")]
FixedBatch = Annotated[
    int | None, typer.Option("--fixed-batch", rich_help_panel=_RESULT, help="Batch of the files [free].")
]
AccuracyBudget = Annotated[
    float | None,
    typer.Option("--accuracy-budget", rich_help_panel=_RESULT, help="Share of right answers int8 may lose [0.006]."),
]


def stated(ctx: typer.Context) -> CompressOptions:
    """The client's keywords that this call of a command states; the commands' parameters are named like them."""
    found = _stated(ctx, CompressOptions.__annotations__)
    asked = files(found.pop("variants", ()))
    return cast(CompressOptions, found | training(ctx.params.get("train") or ()) | asked)


def files(asked: Iterable[str]) -> dict[str, list[str]]:
    """The client's keywords of `--variants`: names that are no ONNX file are those of further runtimes."""
    names = list(asked)
    split = {
        "variants": [name for name in names if name in ONNX_FILES],
        "runtimes": [name for name in names if name not in ONNX_FILES],
    }
    return {keyword: chosen for keyword, chosen in split.items() if chosen}


def stated_of_teacher(ctx: typer.Context) -> InspectOptions:
    """As `stated`, for a command that only reads a teacher."""
    return cast(InspectOptions, _stated(ctx, InspectOptions.__annotations__))


def check_folder(out: Path) -> None:
    """Raises InvalidRequest where the folder can't be made or written, before any work is done for it."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir():
        raise make_error(
            "REQUEST_INVALID",
            f"--out {out}: {there} is a file, not a folder.",
            "Name a folder; it is made where it is missing.",
            {"field": "out"},
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise make_error(
            "REQUEST_INVALID",
            f"--out {out}: {there} can't be written to.",
            "Name a folder of yours, or change its permissions.",
            {"field": "out"},
        )


def existing_pool(client: Client, pool: str) -> None:
    """Returns where the pool is there, so that nothing is uploaded for one that is not.

    Raises:
        NotFound: POOL_NOT_FOUND; for a path it says how to make a pool from it.
    """
    if pool in {found.name for found in client.pools()}:
        return
    if Path(pool).exists():
        raise make_error(
            "POOL_NOT_FOUND",
            f"{pool} is a path; --pool takes the name of a pool.",
            f"Make a pool from it first: punnet pool create NAME {pool}",
            {"pool": pool},
        )
    raise make_error(
        "POOL_NOT_FOUND",
        f"There is no pool {pool!r}.",
        "`punnet pool list` shows those that are there; `punnet pool create NAME PATH` makes one.",
        {"pool": pool},
    )


def _stated(ctx: typer.Context, keywords: Collection[str]) -> dict[str, Any]:
    return {k: v for k, v in ctx.params.items() if k in keywords and v is not None and v != []}
