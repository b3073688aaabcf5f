"""Curves and bars as inline SVG: shapes only, their words stand beside them as text."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from server.curve import Point

WIDTH, HEIGHT, EDGE = 600.0, 200.0, 6.0
BAR_WIDTH, BAR_HEIGHT = 100.0, 10.0


def curve(points: Sequence[Point]) -> Markup:
    """Loss and held-out agreement over the steps; empty for fewer than two points."""
    if len(points) < 2:
        return Markup("")
    first, last = points[0].step, points[-1].step
    losses = [point.loss for point in points]
    low, high = min(losses), max(losses)
    across = [EDGE + (WIDTH - 2 * EDGE) * (point.step - first) / max(1, last - first) for point in points]
    loss = [(x, _height((point.loss - low) / ((high - low) or 1.0))) for x, point in zip(across, points, strict=True)]
    agreement = [
        (x, _height(point.agreement)) for x, point in zip(across, points, strict=True) if point.agreement is not None
    ]
    lines = _line("loss", loss) + (_line("agreement", agreement) if len(agreement) > 1 else "")
    box = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none"'
    return Markup(f'<svg class="curve" {box} aria-hidden="true">{lines}</svg>')


def bar(value: float, most: float, behind: float = 0.0) -> Markup:
    """A bar of `value` out of `most`, before a paler one of `behind`."""
    rectangles = "".join(
        f'<rect class="{name}" width="{BAR_WIDTH * _share(part / most if most else 0.0):.2f}" height="{BAR_HEIGHT:g}"/>'
        for name, part in (("behind", behind), ("before", value))
    )
    box = f'viewBox="0 0 {BAR_WIDTH:g} {BAR_HEIGHT:g}" preserveAspectRatio="none"'
    return Markup(f'<svg class="bar" {box} aria-hidden="true">{rectangles}</svg>')


def _line(name: str, places: Sequence[tuple[float, float]]) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return f'<polyline class="{name}" points="{path}"/>'


def _height(share: float) -> float:
    return EDGE + (HEIGHT - 2 * EDGE) * (1.0 - _share(share))


def _share(value: float) -> float:
    return min(1.0, max(0.0, value)) if value == value else 0.0  # noqa: PLR0124 - not a number
