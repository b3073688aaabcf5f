"""Plots of the report as SVG text: the same numbers give the same bytes.

Text and axes are drawn in `currentColor`, so that a plot follows the page from light to dark and to paper.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pu_engine.picking.pick_types import ReliabilityBin
from pu_engine.teacher.fact_types import Latency
from pu_engine.variants.variant_rows import Point

INK = "#010203"  # stands for currentColor until the SVG is text
TAKEN = "#2f7ed8"
LEFT = "#9aa5b1"
MARK = "#d9480f"
PARTS = (TAKEN, MARK, "#2b8a3e", "#9c36b5", "#e8a317", "#0b7285", "#c2255c", "#5c5f66")
SIZE_INCHES = (6.4, 2.7)
BINS = 60
NAMED_CLASSES = 40  # more don't fit an axis; the counts are then drawn sorted and without names
LABEL_CHARACTERS = 18
STYLE: Any = {  # matplotlib types its settings as a Literal of all names
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called "$x"
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def score_histogram(
    scores: NDArray[np.floating], picked: NDArray[np.bool_], threshold: float, name: str,
    labelled: NDArray[np.floating] | None = None,
) -> str:  # fmt: skip
    """Scores of the pool, picked and not, with the lowest picked score marked; behind them those of labelled images.

    Args:
        scores: [N], N >= 1, finite.
        picked: [N].
        name: of the score, for the axis.
        labelled: scores of the labelled images, [P], drawn to their own scale.
    """
    edges = np.histogram_bin_edges(scores if labelled is None else np.concatenate([scores, labelled]), BINS)
    with mpl.rc_context(STYLE):
        figure, axes = _canvas()
        axes.hist([scores[picked], scores[~picked]], edges.tolist(), stacked=True, color=[TAKEN, LEFT])
        axes.axvline(threshold, color=MARK, linewidth=1.4, linestyle="--")
        axes.set_xlabel(f"score ({name})")
        axes.set_ylabel("pool images")
        handles = [mpl.patches.Patch(color=TAKEN), mpl.patches.Patch(color=LEFT), mpl.lines.Line2D([], [], color=MARK)]
        taken = int(picked.sum())
        labels = [f"picked ({taken:,})", f"not picked ({len(picked) - taken:,})", "lowest picked score"]
        if labelled is not None:
            right = axes.twinx()
            right.hist(labelled, edges.tolist(), histtype="step", color=PARTS[2], linewidth=1.2)
            right.set_ylabel("labelled images", color=PARTS[2])
            right.spines["right"].set_visible(True)
            handles.append(mpl.lines.Line2D([], [], color=PARTS[2]))
            labels.append(f"labelled ({labelled.size:,})")
        _legend(axes, handles, labels)
        return _svg(figure, "scores", "Histogram of the pool's scores")


def reliability(bins: Sequence[ReliabilityBin]) -> str:
    """Share of positives that the labelled images' scores say, over the one believed; whiskers are chance, 95 %."""
    believed, read = ([getattr(b, side) for b in bins] for side in ("believed", "read"))
    chance = [1.96 * b.read * (1 / max(1, b.labelled) + 1 / b.pool) ** 0.5 for b in bins]
    with mpl.rc_context(STYLE):
        figure, axes = _canvas()
        axes.plot([0, 1], [0, 1], color=LEFT, linewidth=1.0, linestyle="--", label="as believed")
        axes.errorbar(believed, read, yerr=chance, color=TAKEN, ecolor=MARK, marker="o", label="as the scores say")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.05)
        axes.set_xlabel("believed probability of a pool image to be of your source")
        axes.set_ylabel("share that is")
        _legend(axes, *axes.get_legend_handles_labels())
        return _svg(figure, "reliability", "Reliability of the believed probabilities")


def class_bars(names: Sequence[str], picked: Sequence[int], available: Sequence[int]) -> str:
    """Picked images of each class before those the pool has of it; sorted and nameless for many classes."""
    order = np.argsort(-np.asarray(picked), kind="stable") if len(names) > NAMED_CLASSES else np.arange(len(names))
    positions = np.arange(len(names))
    with mpl.rc_context(STYLE):
        figure, axes = _canvas()
        axes.bar(positions, np.asarray(available)[order], color=LEFT, width=0.85, label="in the pool")
        axes.bar(positions, np.asarray(picked)[order], color=TAKEN, width=0.85, label="picked")
        axes.set_ylabel("images")
        if len(names) > NAMED_CLASSES:
            axes.set_xlabel(f"{len(names):,} classes, by picked images")
        else:
            axes.set_xticks(positions, [_short(n) for n in names], rotation=45 if len(names) > 6 else 0, ha="right")
        _legend(axes, *axes.get_legend_handles_labels())
        return _svg(figure, "classes", "Images picked for each class")


def training_curve(steps: Sequence[float], losses: Sequence[float], agreements: Sequence[tuple[float, float]]) -> str:
    """Training loss over steps, with the agreement on the held-out images where it was measured.

    Args:
        steps, losses: one value a row of the curve, at least one.
        agreements: (step, share of equal answers).
    """
    with mpl.rc_context(STYLE):
        figure, axes = _canvas()
        axes.plot(steps, losses, color=TAKEN, linewidth=1.6)
        axes.set_xlabel("step")
        axes.set_ylabel("training loss", color=TAKEN)
        axes.set_ylim(bottom=0)
        if agreements:
            right = axes.twinx()
            right.plot(*zip(*agreements, strict=True), color=MARK, linewidth=1.0, marker="o", markersize=3)
            right.set_ylabel("held-out agreement", color=MARK)
            right.set_ylim(0, 1)
            right.spines["right"].set_visible(True)
        return _svg(figure, "curve", "Training loss")


def loss_parts(points: Sequence[Mapping[str, float]]) -> str:
    """Each part of the loss over the steps, on a logarithmic axis, with the learning rate's course behind.

    Args:
        points: rows of the curve; what is neither a step nor a rate or agreement is drawn.
    """
    names = [n for n in points[0] if n not in ("step", "learning_rate", "held_out_agreement")]
    with mpl.rc_context(STYLE):
        figure, axes = _canvas()
        for number, name in enumerate(names):
            drawn = [p for p in points if p.get(name, 0.0) > 0]
            axes.plot(
                [p["step"] for p in drawn], [p[name] for p in drawn],
                color=PARTS[number % len(PARTS)], linewidth=1.3, label=name.replace("_", " "),
            )  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        right = axes.twinx()
        right.plot([p["step"] for p in points], [p["learning_rate"] for p in points], color=LEFT, linestyle=":")
        right.set_ylabel("learning rate", color=LEFT)
        right.set_ylim(bottom=0)
        _legend(axes, *axes.get_legend_handles_labels())
        return _svg(figure, "parts", "Parts of the training loss")


def class_agreement(names: Sequence[str], equal: Sequence[int], images: Sequence[int]) -> str:
    """Share of each class's images, by the teacher, on which the student says the same; the rarest agreement last."""
    shown = np.flatnonzero(images)
    shares = np.asarray(equal)[shown] / np.asarray(images)[shown]
    order = shown[np.argsort(-shares, kind="stable")] if len(names) > NAMED_CLASSES else shown
    heights = [equal[i] / images[i] for i in order]
    with mpl.rc_context(STYLE):
        figure, axes = _canvas()
        axes.bar(range(len(order)), heights, color=TAKEN, width=0.85)
        axes.set_ylim(0, 1)
        axes.set_ylabel("same answer")
        if len(names) > NAMED_CLASSES:
            axes.set_xlabel(f"{len(order):,} classes, by agreement")
        else:
            labels = [f"{_short(names[i])} ({images[i]})" for i in order]
            axes.set_xticks(range(len(order)), labels, rotation=45 if len(order) > 6 else 0, ha="right")
        return _svg(figure, "agreement", "Agreement with the teacher by class")


def latency_bars(latencies: Sequence[Latency]) -> str:
    """Median milliseconds an image, teacher and files, with the 90th percentile as a whisker."""
    rows = list(reversed(latencies))
    medians = [r.p50_ms / r.batch for r in rows]
    whiskers = [[0.0] * len(rows), [max(0.0, r.p90_ms - r.p50_ms) / r.batch for r in rows]]
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(height=0.9 + 0.34 * len(rows))
        colours = [LEFT if r.subject == "teacher" else TAKEN for r in rows]
        axes.barh(range(len(rows)), medians, xerr=whiskers, color=colours, ecolor=MARK, height=0.7)
        axes.set_yticks(range(len(rows)), [f"{r.subject}, batch {r.batch}, {_threads(r.threads)}" for r in rows])
        for position, (median, high) in enumerate(zip(medians, whiskers[1], strict=True)):
            axes.annotate(
                f"{median:.3g} ms", (median + high, position), (4, 0), textcoords="offset points", va="center"
            )
        axes.set_xlabel("milliseconds an image, median and 90th percentile")
        axes.margins(x=0.18)
        axes.set_xlim(left=0)
        return _svg(figure, "latency", "Latency of teacher and student")


def accuracy_over_latency(points: Sequence[Point]) -> str:
    """Held-out accuracy over milliseconds an image, teacher and files; upper left is better."""
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(height=3.1)
        for point in points:
            colour = LEFT if point.name == "teacher" else MARK if point.chosen else TAKEN
            axes.scatter(point.milliseconds, 100 * point.accuracy, s=46, color=colour, zorder=3)
        _label_points(axes, points)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%.3g"))
        axes.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axes.set_xlabel("milliseconds an image, one thread (log scale)")
        axes.set_ylabel("held-out accuracy, %")
        axes.margins(x=0.22, y=0.3)
        axes.grid(alpha=0.25)
        return _svg(figure, "tradeoff", "Accuracy over latency of teacher and files")


def _label_points(axes: Axes, points: Sequence[Point]) -> None:
    """Names beside the dots, above and below by turns: files of one network often have the same accuracy."""
    for index, point in enumerate(sorted(points, key=lambda p: p.milliseconds)):
        axes.annotate(
            point.name, (point.milliseconds, 100 * point.accuracy), (0, 8 if index % 2 else -16),
            textcoords="offset points", ha="center",
        )  # fmt: skip


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _canvas(height: float = SIZE_INCHES[1]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(SIZE_INCHES[0], height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    return figure, axes


def _legend(axes: Axes, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    axes.legend(handles, labels, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def _short(name: str) -> str:
    printable = "".join(c if c.isprintable() else "?" for c in name)
    return printable if len(printable) <= LABEL_CHARACTERS else printable[: LABEL_CHARACTERS - 1] + "…"


def _svg(figure: Figure, name: str, title: str) -> str:
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # The browser draws the text with its own fonts, so a glyph that matplotlib's font lacks is no loss.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r" id=\"[\w.]+_\d+\"", "", text)  # group names repeat from plot to plot; nothing refers to them
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"(<svg [^>]*?)width=\"[^\"]+\"", r"\1", text, count=1)
    text = re.sub(r"(<svg [^>]*?)height=\"[^\"]+\"", r"\1", text, count=1)
    text = text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    return text.replace(INK, "currentColor")
