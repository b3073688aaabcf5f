"""inspection.html from the inspection's data: one file without scripts or anything from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pu_engine.pages.input_recipe import recipe, value_range
from pu_engine.pages.inspection_samples import Sample
from pu_engine.pages.report_page import PIXELATED_SIDE, number, percent, template
from pu_engine.types import Preprocessing

TEMPLATE = "inspection.html"
AXIS_STEP = 0.05  # of the plot of accuracies
SHOWN_OPERATORS = 24
SHOWN_REFUSALS = 20
SHOWN_CLASSES = 1000
KINDS = {
    "NCHW": "a map, channels first, averaged over its pixels",
    "NHWC": "a map, channels last, averaged over its pixels",
    "tokens": "tokens, averaged",
    "vector": "a vector, as it is",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HypothesisBars:
    """Shares of the plots' width, 0 to 1, for one row of the table of conventions."""

    loss: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HypothesisPlot:
    """The table's plots; `axis` are the accuracies at the ends of the right one."""

    axis: tuple[float, float]
    rows: tuple[HypothesisBars, ...]


def render(
    document: Mapping[str, Any], preprocessing: Preprocessing, *, right: Sequence[Sample], wrong: Sequence[Sample]
) -> str:
    """The page.

    Args:
        document: as `inspection.as_json` makes it.
    """
    operators = list(document["operators"].items())
    low, high = value_range(preprocessing)
    return template(TEMPLATE).render(
        **document,
        headline=headline(document),
        recipe=recipe(preprocessing),
        fitted=fit_words(preprocessing),
        low=low,
        high=high,
        plot=hypothesis_plot(document["hypotheses"]),
        right=right,
        wrong=wrong,
        parser=parser_words(document["tensorrt"]),
        shown_refusals=document["tensorrt"]["refused"][:SHOWN_REFUSALS],
        shown_operators=operators[:SHOWN_OPERATORS],
        more_operators=len(operators) - min(len(operators), SHOWN_OPERATORS),
        kinds=KINDS,
        tapped={tap["source"].rpartition(":")[0] for tap in document["taps"]},
        outputs=list(enumerate(document["class_names"]))[:SHOWN_CLASSES],
        labels_of={index: label for label, index in document["class_order"].items()},
        pixelated=max(document["size"]) <= 2 * PIXELATED_SIDE,
    )


def headline(document: Mapping[str, Any]) -> str:
    """What the teacher wants and how well it does, in one sentence."""
    height, width = document["size"]
    return (
        f"Given {document['channels']} images of {width} × {height} pixels (scaling: {document['scaling']}), the "
        f"teacher names {percent(document['accuracy'])} of {number(document['images'])} labelled images rightly."
    )


def fit_words(preprocessing: Preprocessing) -> str:
    """How an image comes to the teacher's size."""
    size = f"{preprocessing.width} × {preprocessing.height} pixels"
    if preprocessing.fit == "crop":
        return f"the centre, 7/8 of the shorter side, resized to {size}"
    return f"the whole image, resized to {size}"


def hypothesis_plot(rows: Sequence[Mapping[str, Any]]) -> HypothesisPlot:
    """Bars of log loss, the largest of which fills the width, and dots of accuracy on an axis that fits all."""
    longest = max((row["nll"] for row in rows), default=0.0) or 1.0
    left = math.floor(min((row["accuracy_low"] for row in rows), default=0.0) / AXIS_STEP) * AXIS_STEP
    right = math.ceil(max((row["accuracy_high"] for row in rows), default=1.0) / AXIS_STEP) * AXIS_STEP

    def place(share: float) -> float:
        return (share - left) / (right - left)

    bars = [
        HypothesisBars(
            loss=row["nll"] / longest,
            accuracy=place(row["accuracy"]),
            low=place(row["accuracy_low"]),
            high=place(row["accuracy_high"]),
        )
        for row in rows
    ]
    return HypothesisPlot(axis=(left, right), rows=tuple(bars))


def parser_words(check: Mapping[str, Any]) -> tuple[str, str]:
    """TensorRT's answer in two or three words, and in a sentence."""
    if check["unchecked"]:
        return "not checked", check["unchecked"]
    if not check["refused_nodes"]:
        return "reads it all", f"{check['parser']} takes every node"
    # It names those up to which it came; behind them it may refuse more.
    nodes = "1 node" if check["refused_nodes"] == 1 else f"{number(check['refused_nodes'])} nodes"
    return f"refuses at least {nodes}", f"{check['parser']} does not take the model as it is"
