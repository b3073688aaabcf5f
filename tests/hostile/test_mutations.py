"""Five hundred mutants of small teachers, at a fixed seed; `make fuzz` tries more, of real ones too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile import fuzz
from tests.hostile.mutation import mutants
from tests.hostile.oracle import guarded, take_in
from tests.hostile.seed_models import labelled_tar, seed_bytes

SEED, MUTANTS = 20, 500


@pytest.mark.parametrize("name", seed_bytes())
def test_seed_is_taken_in(name: str, tmp_path: Path) -> None:
    (tmp_path / "images.tar").write_bytes(labelled_tar())
    take_in(tmp_path, guarded(seed_bytes()[name]))


def test_mutant_depends_on_seed_and_index_only() -> None:
    models = seed_bytes()
    row = [mutant.data for mutant in mutants(models, SEED, range(40))]
    assert [mutant.data for mutant in mutants(models, SEED, range(20, 40))] == row[20:]
    assert len(set(row)) > 30


def test_mutants_are_refused_by_a_code_taken_in_or_contained() -> None:
    findings = fuzz.fuzz(fuzz.models(real=True), seed=SEED, first=0, count=MUTANTS, jobs=1)
    assert findings.broken == []
    assert findings.examined == MUTANTS
    # Mutants that all stop at the first rules would say nothing of what lies behind them.
    assert findings.accepted > MUTANTS / 6
    assert findings.ends["clean"] > MUTANTS / 20


def test_death_is_contained_in_a_run_and_a_defect_in_the_guard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fuzz, "SAVED", tmp_path / "saved")
    end = {"index": 7, "died": "SIGFPE", "source": "plain", "data": "00"}
    run, guard = (fuzz.findings_of([{"index": 7, "step": step}, end], seed=1) for step in ("run", "guard"))
    assert (run.contained, run.broken) == (["SIGFPE in run: mutant 7 of plain, seed 1"], [])
    assert (guard.contained, guard.broken) == ([], ["SIGFPE in guard: mutant 7 of plain, seed 1"])
    assert (tmp_path / "saved" / "1-7.onnx").read_bytes() == b"\0"
