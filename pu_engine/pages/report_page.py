"""report.html from the report's data: one file without scripts or anything from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pu_engine.pages.differences import Differences
from pu_engine.pages.report_samples import Picture
from pu_engine.variants.variant_rows import variant_rows

TEMPLATE = "report.html"
PIXELATED_SIDE = 32  # a student this small sees squares; the report shows them as they are
DEVICES = {
    "fp32": "any device with ONNX Runtime: CPUs, phones, GPUs",
    "fp16": "GPUs, by TensorRT, TensorRT for RTX or ONNX Runtime, and phones",
    "int8-cpu": "x86 and ARM CPUs with ONNX Runtime; TensorRT refuses it",
    "int8-trt": "NVIDIA GPUs, by TensorRT or TensorRT for RTX; slow on CPUs",
    "tensorrt_rtx": "NVIDIA GPUs with TensorRT for RTX",
    "openvino": "Intel CPUs with OpenVINO; keep the `.xml` and the `.bin` together",
    "executorch": "phones and tablets with ExecuTorch, by XNNPACK",
    "tensorrt": "NVIDIA GPUs with TensorRT, of the model that it was built on",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One row of the table of files."""

    path: str
    use: str
    precision: str
    size: int
    sha256: str
    recommended: bool
    verified: bool  # a hop of the chain ends at it


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassSamples:
    """The pictures of one class."""

    name: str
    picked: int
    available: int
    labelled: tuple[Picture, ...]
    best: tuple[Picture, ...]
    borderline: tuple[Picture, ...]
    rejected: tuple[Picture, ...]


def render(
    data: Mapping[str, Any],
    downloads: Sequence[Download],
    samples: Sequence[ClassSamples],
    plots: Mapping[str, str],
    *,
    differences: Differences,
    worst: Sequence[Picture],
) -> str:
    """The page.

    Args:
        data: as `report_data.report_json` makes it.
        plots: SVG by name (scores, classes, reliability where there is one, curve, parts, agreement, latency), of our
            own making: not escaped.
        worst: pictures of the images on which student and teacher differ most.
    """
    return template(TEMPLATE).render(
        **data,
        headline=headline(data),
        parity=parity_words(data["student"]),
        prior=prior_sentence(data["selection"]),
        downloads=downloads,
        rows=variant_rows(data),
        withheld=[v["name"] for v in data["variants"] if v["withheld"]],
        samples=samples,
        differences=differences,
        worst=worst,
        plots={name: Markup(svg) for name, svg in plots.items()},
        pixelated=data["student"]["size"] <= PIXELATED_SIDE,
    )


def template(name: str) -> jinja2.Template:
    """A page's template, which escapes what it is given; its filters are the functions below."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(
        percent=percent, number=number, bytes=byte_size, seconds=duration, milliseconds=milliseconds, factor=factor,
        plain=plain, values=values, figure=figure, rate=rate, planned=planned,
    )  # fmt: skip
    return environment.get_template(name)


def headline(data: Mapping[str, Any]) -> str:
    """The result in one sentence, with what it rests on."""
    student, teacher = data["student"], data["teacher"]
    change = 100 * (student["accuracy"] - teacher["held_out_accuracy"])
    beside = "as many as" if abs(change) < 0.05 else f"{abs(change):.1f} points {'above' if change > 0 else 'below'}"
    text = (
        f"The student answers {percent(student['accuracy'])} of {number(student['held_out'])} held-out labelled images "
        f"rightly, {beside} the teacher, with {number(student['parameters'])} parameters"
    )
    if student["speed"] is None:
        return text + "."
    times, subject = student["speed"]["factor"], student["speed"]["subject"]
    which = "" if subject == "fp32" else f", as its {subject} file"
    return f"{text} and in {percent(1 / times)} of the teacher's time on this machine{which}."


def parity_words(student: Mapping[str, Any]) -> str:
    """Which pool images the student was compared with the teacher on."""
    images, unpicked = student["parity_images"], student["parity_unpicked"]
    if unpicked == images:
        return f"{number(images)} pool images that were not picked"
    if not unpicked:
        return f"{number(images)} pool images, all of which it was trained on"
    return f"{number(images)} pool images, {number(images - unpicked)} of which it was trained on"


def prior_sentence(selection: Mapping[str, Any]) -> str:
    """What is known of the share of positives in the pool."""
    if selection["prior"] is None:
        return "The share of positives in the pool was not estimated."
    how = "as given" if selection["prior_given"] else "estimated"
    text = f"Share of the pool that looks like the source of the labelled images, {how}: {percent(selection['prior'])}"
    if selection["prior_low"] is not None:
        text += f" (95 % interval {percent(selection['prior_low'])} to {percent(selection['prior_high'])})"
    expected = selection["expected"]
    if expected is None:
        return text + "."
    between = f"{percent(expected['precision_low'])} to {percent(expected['precision_high'])}"
    return (
        f"{text}. Of the picked images {percent(expected['precision'])} are expected to be of it ({between}); "
        f"they are {percent(expected['recall'])} of all such images in the pool."
    )


def device_words(name: str, target: str, form: str, details: Mapping[str, str]) -> str:
    """Which device a variant is for."""
    words = DEVICES.get(name) or DEVICES.get(form, f"target {target}")
    capabilities = details.get("capabilities", "").replace(",", ", ")
    return f"{words} ({capabilities})" if capabilities else words


def percent(share: float) -> str:
    """0.8231 -> '82.3 %'."""
    return f"{100 * share:.1f} %"


def number(value: int) -> str:
    """1234567 -> '1,234,567'."""
    return f"{value:,}"


def byte_size(size: float) -> str:
    """Bytes in the unit that fits, 1024 to the next."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds, from 100 on without decimals."""
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.1f}"


def milliseconds(value: float) -> str:
    """0.1234 -> '0.123 ms'."""
    return f"{value:.3g} ms"


def rate(value: float) -> str:
    """Images a second in three digits: 12345.6 -> '12,300'."""
    return f"{float(f'{value:.3g}'):,.{0 if value >= 100 else 1}f}"


def factor(value: float) -> str:
    """How many times: 1.57 -> '1.6 ×'."""
    return f"{value:.0f} ×" if value >= 10 else f"{value:.1f} ×"


def planned(value: float | str | None) -> str:
    """A figure of a plan: a share with three decimals, a count with commas, a name as it is; a dash for none."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3f}"
    return value if isinstance(value, str) else number(value)


def plain(value: float) -> str:
    """A number in six digits, without a trailing '.0'."""
    return f"{value:.6g}"


def values(sequence: Sequence[float]) -> str:
    """Numbers with commas between."""
    return ", ".join(plain(v) for v in sequence)


def figure(value: float) -> str:
    """Two digits, as a power of ten where it is small."""
    return f"{value:.2g}"
