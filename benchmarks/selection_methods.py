"""The scores that are compared, each from a pool's scoring, and the figures that compare them."""

from __future__ import annotations

import time
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.selection_risks import RISKS, estimated_prior, risk_scores
from benchmarks.selection_scores import DrawnPool
from pu_engine.picking.content_scores import margin, separation
from pu_engine.picking.pool_order import PoolOrder, TeacherView, order_pool, teacher_view
from pu_engine.picking.pu_classifier import fit_logistic
from pu_engine.picking.pu_folds import Folds, Scorer, make_folds, out_of_fold_scores
from pu_engine.progress import SilentProgress
from pu_engine.scores.score_files import CLEAN_VIEW, ScoreFiles
from pu_engine.training.loop import repeatable
from pu_engine.types import SelectionOptions

BY_THE_ENGINE = {
    "random": "random",
    "confidence": "confidence",
    "energy": "energy",
    "relative mahalanobis": "relative_mahalanobis",
    "e2": "e2",
    "content": "content",
    "source classifier": "pu",
    "paper": "paper",
    "default": "auto",
}
METHODS = (
    "random",
    "confidence",
    "margin",
    "energy",
    "relative mahalanobis",
    "k-nearest",
    "e2",
    "content",
    "naive p-vs-u",
    *RISKS,
    "paper",
    "source classifier",
    "default",
)
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
    row: dict[str, Any] = figures(score, drawn, view) | {"seconds": round(seconds, 2)}
    if method == "default" and isinstance(order, PoolOrder):
        row |= {"branch": order.name, "why": order.why}
        row |= {"evidence": asdict(order.evidence) if order.evidence else None}
    return row


def ordered(method: str, files: ScoreFiles, view: TeacherView, seed: int) -> PoolOrder | Score:
    """A method's score of each pool image."""
    if method in BY_THE_ENGINE:
        return order_pool(files, view, SelectionOptions(score=BY_THE_ENGINE[method]), seed, SilentProgress())
    match method:
        case "k-nearest":
            return nearest(files)
        case "margin":
            return np.concatenate([margin(logits) for logits in files.pool_logits()])
        case "naive p-vs-u":
            return linear(files, seed)[1]
        case _:
            prior = estimated_prior(*linear(files, seed))
            return risk_scores(method, features_folds(files, seed), prior, seed)[1]


def features_folds(files: ScoreFiles, seed: int) -> Folds:
    """Folds of the clean view's features alone."""
    return make_folds(
        files.positive_features(CLEAN_VIEW),
        np.array(files.positive_classes),
        partial(files.pool_features, CLEAN_VIEW),
        np.random.default_rng(seed),
    )


def linear(files: ScoreFiles, seed: int) -> tuple[Score, Score]:
    """Labelled against pool images, linearly on the clean view's features: scores of both, [P] and [N]."""
    folds = features_folds(files, seed)

    def fit(fold: int, generator: torch.Generator) -> Scorer:
        positive, unlabelled, _ = folds.split(fold)
        return fit_logistic(positive, unlabelled, torch.zeros(len(unlabelled)), generator, functions=0)

    return out_of_fold_scores(folds, fit, seed)


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
    row = {"auc": separation(score[right & counted], score[~right & counted])}
    for share in BEST_SHARES:
        row[f"p_top_{round(100 * share):02}"] = float(right[best[: round(share * len(best))]].mean())
    classes = drawn.files.scores.classes
    counts = np.bincount(view.classes[best[: len(best) // 10]], minlength=classes)
    shares = counts[counts > 0] / counts.sum()
    row["class_entropy"] = float(-(shares * np.log(shares)).sum() / np.log(classes))
    return row


def _unit(rows: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9))
