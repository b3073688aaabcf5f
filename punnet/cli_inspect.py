"""`punnet inspect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from punnet import cli_options as o
from punnet.cli_output import bytes_text, percent_text, print_document, print_facts, print_table
from punnet.cli_page import check_writable
from punnet.cli_progress import finished_document, transfer_bar
from punnet.client import Client

INSPECTION, PAGE = "inspection.json", "inspection.html"
HYPOTHESES_SHOWN, CLASSES_SHOWN, OPERATORS_SHOWN, REFUSALS_SHOWN, CONFUSIONS_SHOWN = 8, 12, 8, 4, 5


def inspect(
    ctx: typer.Context,
    *,
    teacher: o.TeacherFile,
    images: o.Images,
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
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with sample images and predictions.")
    ] = None,
    server: o.Server = None,
    data: o.Data = None,
    as_json: o.AsJson = False,
) -> None:
    """Find out what a teacher expects and how well it does on the labelled images."""
    if html is not None:
        check_writable(html)
    with Client(server, data=data) as client:
        with transfer_bar("uploading") as progress:
            job = client.inspect(teacher, images, progress=progress, **o.stated_of_teacher(ctx))
        document = finished_document(client, job, INSPECTION, pages={PAGE: html} if html is not None else None)
    if as_json:
        print_document(document)
    else:
        print_inspection(document)


def print_inspection(document: Mapping[str, Any]) -> None:
    """What inspection.json holds, for people."""
    low, high = percent_text(document["accuracy_low"]), percent_text(document["accuracy_high"])
    print_facts(
        f"{document['name']}: right on {percent_text(document['accuracy'])} of {document['images']} labelled images "
        f"({low} to {high})",
        _conventions(document),
    )
    _print_hypotheses(document["hypotheses"])
    print_facts("What it is", _facts(document))
    if document["confusions"]:
        pairs = [
            (c["label"], f"taken for {c['predicted']}: {c['images']} of {c['of']}")
            for c in document["confusions"][:CONFUSIONS_SHOWN]
        ]
        print_facts("Most confused", pairs)
    texts = [*document["warnings"], *document["notes"]]
    if texts:
        print_facts("Worth knowing", [("-", text) for text in texts])


def _conventions(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    height, width = document["size"]
    mean, std = (", ".join(f"{v:.6g}" for v in document[key]) for key in ("mean", "std"))
    order = sorted(document["class_order"].items(), key=lambda item: item[1])
    shown = ", ".join(f"{index} {label}" for label, index in order[:CLASSES_SHOWN])
    more = f" and {len(order) - CLASSES_SHOWN} more" if len(order) > CLASSES_SHOWN else ""
    sources = ", ".join(tap["source"].rpartition(":")[0] for tap in document["taps"])
    chosen = "as asked for" if document["taps_stated"] else f"of {len(document['tap_candidates'])} candidates"
    return [
        ("layout", document["layout"]),
        ("channels", document["channels"]),
        ("scaling", f"{document['scaling']}: (pixel × {document['scale']:.6g} - [{mean}]) / [{std}]"),
        ("size", f"{width} × {height} pixels, {document['dtype']}"),
        ("resize", "the centre, 7/8 of the shorter side" if document["fit"] == "crop" else "the whole image"),
        ("batch", "any" if document["batch"] == "dynamic" else f"always {document['batch']}"),
        ("output", f"{document['output'].replace('_', ' ')} of {document['classes']} classes"),
        ("classes", shown + more),
        *((f"input {name}", f"{value:g}") for name, value in document["scalar_inputs"].items()),
        ("taps", f"{sources} ({chosen})"),
    ]


def _print_hypotheses(rows: Sequence[Mapping[str, Any]]) -> None:
    shown = [
        (
            row["name"] + (" (tied)" if row["tied"] else ""),
            f"{row['nll']:.3f}",
            percent_text(row["accuracy"]),
            f"{100 * row['accuracy_low']:.1f} to {100 * row['accuracy_high']:.1f}",
            percent_text(row["agreement"]),
        )
        for row in rows[:HYPOTHESES_SHOWN]
    ]
    columns = ("convention", "log loss", "accuracy", "interval", "agreement")
    print_table("What was tried, best first; agreement is with the first", columns, shown)


def _facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    operators = list(document["operators"].items())
    kinds = ", ".join(f"{name} {count}" for name, count in operators[:OPERATORS_SHOWN])
    more = f" and {len(operators) - OPERATORS_SHOWN} more kinds" if len(operators) > OPERATORS_SHOWN else ""
    opsets = ", ".join(f"{domain} {version}" for domain, version in document["opsets"].items())
    rows = [
        ("file", f"{bytes_text(document['bytes'])}, made by {document['producer'] or 'an unnamed exporter'}"),
        ("format", f"IR version {document['ir_version']}, operator sets {opsets}"),
        ("cost", f"{document['parameters']:,} parameters, {document['macs']:,} multiply-accumulates an image"),
        ("activations", f"{bytes_text(document['activation_bytes'])} at their peak, for one image"),
    ]
    for row in document["latencies"]:
        threads = f"{row['threads']} thread{'' if row['threads'] == 1 else 's'}"
        rows.append(
            (
                "latency",
                f"{row['p50_ms']:.3g} ms at batch {row['batch']} (90 % under {row['p90_ms']:.3g} ms), {threads}",
            )
        )
    rows += [("operators", kinds + more), ("TensorRT", _parser(document["tensorrt"]))]
    return [*rows, ("torch twin", _twin(document["twin"]))] if document.get("twin") else rows


def _twin(twin: Mapping[str, Any]) -> str:
    if not twin["available"]:
        return f"none: {twin['reason']}"
    return f"agrees with onnxruntime on {percent_text(twin['agreement'])} of {twin['images']} images"


def _parser(check: Mapping[str, Any]) -> str:
    if check["unchecked"]:
        return f"not checked: {check['unchecked']}"
    if not check["refused_nodes"]:
        return f"{check['parser']} takes every node"
    kinds = Counter((row["operator"] or "the model", row["reason"]) for row in check["refused"])
    shown = "; ".join(f"{count} {name}: {reason}" for (name, reason), count in kinds.most_common(REFUSALS_SHOWN))
    return f"{check['parser']} refuses at least {check['refused_nodes']} of the nodes; {shown}"
