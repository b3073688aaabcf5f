"""Scores by shard across jobs: what an earlier scoring knows of a shard is copied, not computed again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pu_engine.jsonform import to_json
from pu_engine.pipeline import ENGINE_VERSION, SCORING, installed_versions
from pu_engine.results import canonical_json, load, read_manifest
from pu_engine.scores.score_types import Scores
from pu_engine.scores.scorer import Scorer

COPIED_BYTES = 4 * 2**20  # at once


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierScoring:
    """A finished scoring, and the sha256 of each of its files as its manifest has it."""

    folder: Path
    scores: Scores
    digests: Mapping[str, str]

    def name_of(self, key: str) -> str | None:
        """The shard that has this key."""
        keys = self.scores.shard_keys
        return self.scores.shards[keys.index(key)] if key in keys else None


def read_earlier(folders: Sequence[str]) -> tuple[EarlierScoring, ...]:
    """Finished scorings, in the order given.

    One that was removed meanwhile, or that another version of Punnet wrote, is left out: it only saved work.
    """
    found = []
    for folder in map(Path, folders):
        try:
            rows = read_manifest(folder)["files"]
            scores = load(Scores, folder)
        except (OSError, ValueError):
            continue
        found.append(EarlierScoring(folder=folder, scores=scores, digests={r["path"]: r["sha256"] for r in rows}))
    return tuple(found)


def shard_keys(scorer: Scorer, shards: Sequence[Any], *, teacher: str, model: str) -> tuple[str, ...]:
    """What the scores of each shard depend on, as sha256; neither the pool's name nor the labelled images count.

    Args:
        shards: of the pool, with their digests.
        teacher: sha256 of the tapped model. model: of what runs, the teacher itself or its int8 copy.
    """
    settled = {
        "engine": ENGINE_VERSION,
        "schema": SCORING.schema,
        "versions": installed_versions(),
        "teacher": teacher,
        "model": model,
        "taps": to_json(scorer.teacher.taps),
        "preprocessing": to_json(scorer.teacher.preprocessing),
        "batch": scorer.batch,
        "matched": None if scorer.matched is None else to_json(scorer.matched),
        "provider": scorer.provider,
    }
    keys = []
    for shard in shards:
        content = {name: value for name, value in to_json(shard).items() if name != "name"}
        keys.append(hashlib.sha256(canonical_json({**settled, "shard": content}).encode()).hexdigest())
    return tuple(keys)


def copy_verified(earlier: EarlierScoring, source: str, target: Path) -> bool:
    """Copy one file of an earlier scoring; False, and no file, where it is not as its manifest says.

    A copy, not a link: a stranger's model runs beside it, and could write to what another job relies on.
    """
    partial = target.with_name(f".{target.name}.partial")
    digest = hashlib.sha256()
    try:
        with (earlier.folder / source).open("rb") as reading, partial.open("wb") as writing:
            while piece := reading.read(COPIED_BYTES):
                digest.update(piece)
                writing.write(piece)
            writing.flush()
            os.fsync(writing.fileno())
    except FileNotFoundError:  # the job that it belonged to was deleted
        partial.unlink(missing_ok=True)
        return False
    if digest.hexdigest() != earlier.digests.get(source):
        partial.unlink()
        return False
    partial.rename(target)
    return True
