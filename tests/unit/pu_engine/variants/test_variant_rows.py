from __future__ import annotations

from typing import Any

import pytest

from pu_engine.variants.variant_rows import tradeoff, variant_rows

INT8 = {"calibration": "minmax", "calibration_images": "512", "nodes_in_float": "first, second"}


def latency(subject: str, batch: int, threads: int, milliseconds: float) -> dict[str, Any]:
    return {
        "subject": subject, "batch": batch, "threads": threads, "p50_ms": milliseconds, "p90_ms": milliseconds,
        "p99_ms": None, "runs": 9,
    }  # fmt: skip


@pytest.fixture
def data() -> dict[str, Any]:
    return {
        "variants": [
            {"name": "fp32", "size": 1000, "withheld": False, "details": {}},
            {"name": "int8-cpu", "size": 250, "withheld": False, "details": INT8},
            {"name": "int8-trt", "size": 240, "withheld": True, "details": {**INT8, "nodes_in_float": ""}},
            {"name": "rtx", "size": 900, "withheld": False, "details": {}},
        ],
        "verdicts": [
            {"hop": "teacher -> torch", "agreement": 0.9, "accuracy_after": 0.8},
            {"hop": "torch -> fp32", "agreement": 1.0, "accuracy_after": 0.8},
            {"hop": "fp32 -> int8-cpu", "agreement": 0.99, "accuracy_after": 0.79},
            {"hop": "fp32 -> int8-trt", "agreement": 0.7, "accuracy_after": 0.5},
        ],
        "recommendations": [{"target": "cpu", "variant": "int8-cpu", "reason": ""}],
        "latencies": [
            latency("teacher", 1, 1, 20.0), latency("fp32", 32, 1, 64.0), latency("fp32", 1, 1, 4.0),
            latency("int8-cpu", 1, 2, 1.0), latency("int8-cpu", 1, 1, 2.0),
        ],
    }  # fmt: skip


def test_a_row_joins_size_verdict_and_timings(data: dict[str, Any]) -> None:
    row = variant_rows(data)[1]
    assert (row.size_share, row.agreement, row.accuracy, row.state) == (0.25, 0.99, 0.79, "recommended for cpu")
    assert [(t.batch, t.threads, t.images_per_second) for t in row.timings] == [(1, 2, 1000.0), (1, 1, 500.0)]


def test_states_tell_what_passed_what_is_withheld_and_what_was_not_run(data: dict[str, Any]) -> None:
    assert [row.state for row in variant_rows(data)] == ["passed", "recommended for cpu", "withheld", "not run here"]
    assert variant_rows(data)[3].agreement is None


def test_note_says_how_int8_was_found(data: dict[str, Any]) -> None:
    notes = [row.note for row in variant_rows(data)]
    assert notes[1] == "calibrated by minmax on 512 picked images; 2 nodes stay in float"
    assert notes[2] == "calibrated by minmax on 512 picked images"
    assert notes[0] == ""


def test_note_says_how_far_a_training_got_and_where_a_search_ended(data: dict[str, Any]) -> None:
    details = {**INT8, "training_steps": "200", "training": "agreement 0.9 before, 0.98 after; kept",
               "search_ended": "7 of 90 nodes measured in 300 s"}  # fmt: skip
    data["variants"][1]["details"] = details
    note = variant_rows(data)[1].note
    assert "the search for them ended with 7 of 90 nodes measured in 300 s" in note
    assert note.endswith("trained for 200 steps against rounding: agreement 0.9 before, 0.98 after; kept")
    data["variants"][1]["details"] = {"made_of": "int8-cpu"}
    assert variant_rows(data)[1].note == "made of int8-cpu"


def test_tradeoff_has_one_point_a_network_at_its_smallest_batch_on_one_thread(data: dict[str, Any]) -> None:
    points = {p.name: (p.milliseconds, p.accuracy, p.chosen) for p in tradeoff(data, 0.95)}
    assert points == {"teacher": (20.0, 0.95, False), "fp32": (4.0, 0.8, False), "int8-cpu": (2.0, 0.79, True)}
