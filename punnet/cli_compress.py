"""`punnet compress` and `punnet plan`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from punnet import cli_options as o
from punnet.aio import state_name
from punnet.changed_options import changed_options
from punnet.cli_jobs import full_id
from punnet.cli_output import artifact_documents, bytes_text, percent_text, print_document, print_table, seconds_text
from punnet.cli_progress import finished_document, run_to_end, transfer_bar
from punnet.client import Client
from punnet.errors import InvalidRequest
from punnet.job import Job
from punnet.options import CompressOptions
from punnet.v1 import job_pb2

REPORT, PLAN = "report.json", "plan.json"
SHOWN_CLASSES = 20


def compress(
    ctx: typer.Context,
    *,
    teacher: o.TeacherOrNone = None,
    images: o.ImagesOrNone = None,
    pool: o.PoolOrNone = None,
    from_job: o.FromJob = None,
    changes: o.Changes = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the artifacts go.")] = None,
    student: o.Student = None,
    size: o.Size = None,
    max_parameters: o.MaxParameters = None,
    max_macs: o.MaxMacs = None,
    max_latency_ms: o.MaxLatency = None,
    max_bytes: o.MaxBytes = None,
    student_weights: o.StudentWeights = None,
    effort: o.Effort = None,
    minutes: o.Minutes = None,
    steps: o.Steps = None,
    train: o.Train = None,
    batch_size: o.BatchSize = None,
    learning_rate: o.LearningRate = None,
    temperature: o.Temperature = None,
    labelled_share: o.LabelledShare = None,
    label_weight: o.LabelWeight = None,
    class_weights: o.ClassWeights = None,
    radius: o.Radius = None,
    score: o.Score = None, prior: o.Prior = None,
    rule: o.Rule = None, picks: o.Picks = None, threshold: o.Threshold = None,
    class_floors: o.ClassFloors = None, class_caps: o.ClassCaps = None,
    keep_look_alikes: o.KeepLookAlikes = False, excluded: o.Excluded = None,
    layout: o.Layout = None,
    channels: o.Channels = None,
    scale: o.Scale = None,
    mean: o.Mean = None,
    std: o.Std = None,
    input_height: o.InputHeight = None,
    input_width: o.InputWidth = None,
    fit: o.Fit = None,
    class_names: o.ClassNames = None,
    taps: o.Taps = None,
    targets: o.Targets = None,
    max_batch: o.MaxBatch = None,
    parity_images: o.ParityImages = None,
    variants: o.Variants = None,
    include_preprocessing: o.IncludePreprocessing = False,
    softmax: o.Softmax = False,
    fixed_batch: o.FixedBatch = None,
    accuracy_budget: o.AccuracyBudget = None,
    seed: o.Seed = None,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Run intake and the checks only.")] = False,
    request_id: o.RequestId = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start the job and leave it running.")] = False,
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:  # fmt: skip
    """Compress a teacher into a small verified student, or a job again with other options."""
    _run(ctx, server, data, out, detach)


def _run(ctx: typer.Context, server: str | None, data: Path | None, out: Path | None, detach: bool) -> None:
    """Start the job, and follow it to its end unless it is left running."""
    _check_material(ctx.params)
    _check_purpose(out, detach)
    with Client(server, data=data) as client:
        job = _start(client, ctx.params, o.stated(ctx))
        _see_through(client, job, None if detach else out, ctx.params["as_json"])


def _check_material(parameters: Mapping[str, Any]) -> None:
    """Usage errors, as the command line's own ones."""
    if parameters["from_job"] is None:
        needed = {"TEACHER.onnx": "teacher", "--images": "images", "--pool": "pool"}
        missing = [shown for shown, name in needed.items() if parameters[name] is None]
        if missing:
            raise typer.BadParameter(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")
        if parameters["changes"]:
            raise typer.BadParameter("--set goes with --from; give the options by their own names.")
    elif parameters["teacher"] or parameters["images"]:
        raise typer.BadParameter("--from takes the teacher and images of a job; leave TEACHER.onnx and --images out.")


def _start(client: Client, parameters: Mapping[str, Any], stated: CompressOptions) -> Job:
    pool = parameters["pool"]
    if pool is not None:
        o.existing_pool(client, pool)
    if parameters["from_job"] is not None:
        options: CompressOptions = {**stated, **changed_options(parameters["changes"] or ())}
        return client.compress_again(full_id(client, parameters["from_job"]), pool=pool or "", **options)
    with transfer_bar("uploading") as progress:
        return client.compress(parameters["teacher"], parameters["images"], pool, progress=progress, **stated)


def _see_through(client: Client, job: Job, out: Path | None, as_json: bool) -> None:
    """Wait for the job and fetch what it made; without a folder only say that it runs."""
    if out is None:
        _print_started(job, as_json)
        return
    done = run_to_end(client, job.id, then=f"punnet download {job.id} --out {out}")
    with transfer_bar("downloading") as progress:
        client.download(job.id, out, progress)
    _print_result(done, out, as_json)


def _check_purpose(out: Path | None, detach: bool) -> None:
    if out is not None:
        o.check_folder(out)
    elif not detach:
        raise InvalidRequest(
            "Neither --out nor --detach was given.", code="REQUEST_INVALID", remedy="Say with --out where to put files."
        )


def plan(
    ctx: typer.Context,
    *,
    teacher: o.TeacherFile,
    images: o.Images,
    pool: o.PoolName,
    student: o.Student = None,
    size: o.Size = None,
    effort: o.Effort = None,
    minutes: o.Minutes = None,
    steps: o.Steps = None,
    train: o.Train = None,
    batch_size: o.BatchSize = None,
    score: o.Score = None,
    rule: o.Rule = None,
    picks: o.Picks = None,
    layout: o.Layout = None,
    channels: o.Channels = None,
    scale: o.Scale = None,
    mean: o.Mean = None,
    std: o.Std = None,
    input_height: o.InputHeight = None,
    input_width: o.InputWidth = None,
    fit: o.Fit = None,
    class_names: o.ClassNames = None,
    taps: o.Taps = None,
    seed: o.Seed = None,
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """Estimate the seconds and memory of a compression."""
    with Client(server, data=data) as client:
        o.existing_pool(client, pool)
        with transfer_bar("uploading") as progress:
            job = client.plan(teacher, images, pool, progress=progress, **o.stated(ctx))
        document = finished_document(client, job, PLAN)
    if as_json:
        print_document(document)
    else:
        print_plan(document)


def print_plan(document: Mapping[str, Any]) -> None:
    """Stages with time and memory, and what other efforts would take and bring, from plan.json."""
    rows = [
        (s["stage"], seconds_text(s["seconds"]), bytes_text(s["memory_bytes"]), s["how"]) for s in document["stages"]
    ]
    rows.append(("together", seconds_text(document["seconds"]), "", ""))
    title = (
        f"{document['picked']} of {document['pool_images']} pool images, "
        f"{document['student']} with {document['parameters']:,} parameters"
    )
    print_table(title, ("stage", "time", "memory", "how it was found"), rows)
    print_forecast(document)
    others = [
        (f"--effort {row['effort']}", f"{row['steps']:,}", seconds_text(row["seconds"]), f"{row['points']:+.0f}")
        for row in document["outlook"]
    ]
    heads = ("instead", "steps", "training", "points of accuracy, as a rule of thumb")
    print_table(f"Training: {document['budget']}; targets {document['targets']}", heads, others)


def print_forecast(document: Mapping[str, Any]) -> None:
    """What selection would pick, from plan.json: the score and why, and the classes from the poorest on."""
    found = document.get("selection")
    if found is None:  # a plan of an earlier version
        return
    expected = found["expected"]
    typer.echo(f"From {found['sample']:,} pool images: the score {found['score']}, for {found['why'].rstrip('.')}.")
    if expected:
        between = f"{percent_text(expected['precision_low'])} to {percent_text(expected['precision_high'])}"
        typer.echo(f"Of the picks {percent_text(expected['precision'])} should be of your source ({between}).")
    classes = sorted(zip(found["class_counts"], found["class_available"], found["class_names"], strict=True))
    rows = [(name, f"{picked:,}", f"{there:,}") for picked, there, name in classes[:SHOWN_CLASSES]]
    print_table("Picks by the teacher's classes, fewest first", ("class", "picked", "in the pool"), rows)


def _print_started(job: Job, as_json: bool) -> None:
    if as_json:
        print_document({"job": job.id, "state": job.state, "artifacts": [], "report": None})
        return
    typer.echo(job.id)
    typer.echo(f"Watch it:  punnet watch {job.id}", err=True)
    typer.echo(f"Fetch what it made:  punnet download {job.id} --out DIR", err=True)


def _print_result(job: job_pb2.Job, out: Path, as_json: bool) -> None:
    report = out / REPORT
    made = REPORT in {artifact.path for artifact in job.artifacts}
    if as_json:
        print_document(
            {
                "job": job.id,
                "state": state_name(job),
                "artifacts": artifact_documents(job),
                "report": str(report) if made else None,
            }
        )
        return
    if made:
        print_report(json.loads(report.read_text()))
    typer.echo(f"{len(job.artifacts)} files in {out}")
    for artifact in job.artifacts:
        typer.echo(f"  {out / artifact.path}  {bytes_text(artifact.size)}")


def print_report(report: Mapping[str, Any]) -> None:
    """Teacher beside student, and the variants that were made, from report.json."""
    teacher, student = report["teacher"], report["student"]
    speed = student["speed"] or {}
    low, high = percent_text(student["accuracy_low"]), percent_text(student["accuracy_high"])
    rows = [
        ("network", teacher["name"], student["name"]),
        (
            f"accuracy on {student['held_out']} held-out images",
            percent_text(teacher["held_out_accuracy"]),
            f"{percent_text(student['accuracy'])} ({low} to {high})",
        ),
        ("agreement with the teacher", "", percent_text(student["agreement"])),
        ("parameters", f"{teacher['parameters']:,}", f"{student['parameters']:,}"),
        ("multiply-accumulates", f"{teacher['macs']:,}", f"{student['macs']:,}"),
        ("milliseconds an image", _milliseconds(speed, "teacher_ms"), _milliseconds(speed, "student_ms")),
    ]
    print_table("Compression", ("", "teacher", "student"), rows)
    variants = [
        (
            v["name"] + (" (recommended)" if v["recommended"] else ""),
            v["format"],
            bytes_text(v["size"]),
            "withheld" if v["withheld"] else v["path"],
        )
        for v in report["variants"]
    ]
    print_table("Variants", ("name", "format", "size", "file"), variants)
    for row in report["recommendations"]:
        typer.echo(f"For the target {row['target']} take {row['variant']}: {row['reason']}.")


def _milliseconds(speed: Mapping[str, Any], key: str) -> str:
    return f"{speed[key]:.2f}" if key in speed else "-"
