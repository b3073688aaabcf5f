"""The scores that are compared, each from a pool's scoring, and the figures that compare them."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.selection_scores import DrawnPool
from pu_engine.content_scores import ranks
from pu_engine.pool_order import PoolOrder, TeacherView, order_pool, teacher_view
from pu_engine.progress import SilentProgress
from pu_engine.pu_classifier import linear_scores, make_halves
from pu_engine.score_files import CLEAN_VIEW, ScoreFiles
from pu_engine.training import repeatable
from pu_engine.types import SelectionOptions

BY_THE_ENGINE = {
    "random": "random",
    "confidence": "confidence",
    "energy": "energy",
    "relative mahalanobis": "relative_mahalanobis",
    "e2": "e2",
    "nnpu": "pu",
    "default": "auto",
}
METHODS = ("random", "confidence", "energy", "relative mahalanobis", "k-nearest", "e2", "naive p-vs-u", "nnpu", "default")
BEST_SHARES = (0.05, 0.10, 0.20)
NEIGHBOURS = 5

Score = NDArray[np.float64]


def measured(method: str, drawn: DrawnPool, seed: int) -> dict[str, Any]:
    """One row: the figures of a method on a pool, and for `default` what it decided by."""
    started = time.perf_counter()
    view = teacher_view(drawn.files)
    with repeatable(threads=1):
        order = ordered(method, drawn.files, view, seed)
    seconds = time.perf_counter() - started
    score = order.score if isinstance(order, PoolOrder) else order
    row = figures(score, drawn, view) | {"seconds": round(seconds, 2)}
    if method == "default" and isinstance(order, PoolOrder):
        row |= {"branch": order.name, "why": order.why}
        row |= {"evidence": asdict(order.evidence) if order.evidence else None}
    return row


def ordered(method: str, files: ScoreFiles, view: TeacherView, seed: int) -> PoolOrder | Score:
    """A method's score of each pool image."""
    if method in BY_THE_ENGINE:
        return order_pool(files, view, SelectionOptions(score=BY_THE_ENGINE[method]), seed, SilentProgress())
    if method == "k-nearest":
        return nearest(files)
    halves = make_halves(
        files.positive_features(files.matched_view),
        np.array(files.positive_classes),
        lambda: files.pool_features(files.matched_view),
        np.random.default_rng(seed),
    )
    return linear_scores(halves, seed, SilentProgress())[1]


def nearest(files: ScoreFiles) -> Score:
    """Mean cosine of the last tap to the five nearest labelled images, [N]."""
    columns = slice(-files.last_tap_width, None)
    labelled = _unit(files.positive_features(CLEAN_VIEW)[:, columns])
    found = []
    for chunk in files.pool_features(CLEAN_VIEW):
        cosine = _unit(chunk[:, columns]) @ labelled.T
        found.append(np.partition(cosine, -NEIGHBOURS, axis=1)[:, -NEIGHBOURS:].mean(axis=1))
    return np.concatenate(found).astype(np.float64)


def figures(score: Score, drawn: DrawnPool, view: TeacherView) -> dict[str, float]:
    """AUC without the arguable images; precision among the best shares of the pool, in which these are wrong; and
    how evenly the teacher's classes are among the best tenth (1: all alike).
    """
    right, counted = drawn.right, ~drawn.arguable
    best = np.argsort(-score, kind="stable")
    row = {"auc": auc(score[right & counted], score[~right & counted])}
    for share in BEST_SHARES:
        row[f"p_top_{round(100 * share):02}"] = float(right[best[: round(share * len(best))]].mean())
    classes = drawn.files.scores.classes
    counts = np.bincount(view.classes[best[: len(best) // 10]], minlength=classes)
    shares = counts[counts > 0] / counts.sum()
    row["class_entropy"] = float(-(shares * np.log(shares)).sum() / np.log(classes))
    return row


def auc(right: Score, wrong: Score) -> float:
    """How often a right image scores above a wrong one; equal scores count half."""
    rank = ranks(np.concatenate([right, wrong])) * (len(right) + len(wrong))
    return float((rank[: len(right)].sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
