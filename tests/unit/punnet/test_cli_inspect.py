"""What `punnet inspect` prints for people."""

from __future__ import annotations

from typing import Any

import pytest

from punnet.cli_inspect import print_inspection

CONVENTION = {
    "name": "RGB 0..1", "tied": True, "preprocessing": {}, "nll": 0.25, "accuracy": 0.9, "accuracy_low": 0.8,
    "accuracy_high": 0.95, "agreement": 1.0,
}  # fmt: skip
DOCUMENT: dict[str, Any] = {
    "name": "t.onnx", "bytes": 2048, "sha256": "0" * 64, "layout": "NCHW", "channels": "RGB", "scale": 1 / 255,
    "mean": [0.0] * 3, "std": [1.0] * 3, "scaling": "0..1", "fit": "crop",
    "scalar_inputs": {"training": 0.0}, "dtype": "float32", "size": [32, 48], "batch": "dynamic",
    "output": "log_probabilities", "classes": 20, "class_names": [str(i) for i in range(20)],
    "class_order": {f"[bold]{i}": i for i in range(20)}, "accuracy": 0.9, "accuracy_low": 0.8, "accuracy_high": 0.95,
    "images": 40, "warnings": ["[red]few images"], "notes": ["flatters"], "hypotheses": [CONVENTION],
    "confusions": [{"label": "3", "predicted": "5", "images": 2, "of": 9}],
    "taps": [{"name": "tap_0", "source": "relu:1:NCHW", "width": 8}], "taps_stated": False,
    "tap_candidates": [{"name": "relu:1", "kind": "NCHW", "shape": [8, 4, 4]}], "parameters": 1000, "macs": 5000,
    "activation_bytes": 4096, "opset": 17, "opsets": {"ai.onnx": 17}, "ir_version": 8, "producer": "",
    "operators": {"Conv": 3, "Relu": 3}, "latencies": [
        {"subject": "teacher", "batch": 32, "threads": 1, "p50_ms": 1.25, "p90_ms": 2.0, "runs": 5}
    ],
    "tensorrt": {"parser": "TensorRT 11", "refused": [], "refused_nodes": 0, "unchecked": ""},
}  # fmt: skip


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, **changes: Any) -> str:
    monkeypatch.setenv("COLUMNS", "240")
    print_inspection(DOCUMENT | changes)
    return capsys.readouterr().out


def test_findings_are_shown_in_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = printed(capsys, monkeypatch)
    for text in (
        "t.onnx: right on 90.0 % of 40 labelled images (80.0 % to 95.0 %)", "NCHW", "0..1: (pixel × 0.00392157 - ",
        "RGB 0..1 (tied)", "the centre, 7/8", "input training",
        "48 × 32 pixels, float32", "log probabilities of 20 classes", "and 8 more", "relu:1 (of 1 candidates)",
        "80.0 to 95.0", "0.250", "2.0 KiB, made by an unnamed exporter", "4.0 KiB at their peak",
        "1.25 ms at batch 32 (90 % under 2 ms), 1 thread", "Conv 3, Relu 3", "TensorRT 11 takes every node",
        "taken for 5: 2 of 9", "flatters",
    ):  # fmt: skip
        assert text in shown, text


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    confusion = {"label": "[red]airplane", "predicted": "[/b]ship", "images": 1, "of": 2}
    tried = CONVENTION | {"name": "[red]RGB"}
    shown = printed(capsys, monkeypatch, scalar_inputs={"[/b]keep": 1.0}, confusions=[confusion], hypotheses=[tried])
    for text in ("input [/b]keep", "[red]airplane", "taken for [/b]ship", "[red]RGB (tied)"):
        assert text in shown, text
    assert "0 [bold]0" in shown
    assert "[red]few images" in shown


def test_fixed_batch_and_named_taps_are_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = printed(capsys, monkeypatch, batch=4, taps_stated=True)
    assert "always 4" in shown
    assert "relu:1 (as asked for)" in shown


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (
            {"parser": "", "refused": [], "refused_nodes": 0, "unchecked": "no TensorRT parser installed"},
            "not checked: no TensorRT parser installed",
        ),
        (
            {
                "parser": "TensorRT 11",
                "refused": [{"node": n, "operator": "Det", "reason": "no such operator"} for n in "abc"],
                "refused_nodes": 3,
                "unchecked": "",
            },
            "TensorRT 11 refuses at least 3 of the nodes; 3 Det: no such operator",
        ),
    ],
)
def test_parsers_answer_is_one_line(
    check: dict[str, Any], text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert text in printed(capsys, monkeypatch, tensorrt=check)
