"""Line plots and bars as SVG, in a page that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final, NamedTuple

__all__ = ("Line", "line_plot", "ticks_between", "ticks_up_to")

WIDTH: Final = 720
HEIGHT: Final = 240
LEFT, RIGHT, TOP, BOTTOM = 70, 16, 28, 36

_Place = Callable[[float, float], tuple[float, float]]


class Line(NamedTuple):
    """One line of a plot."""

    name: str
    points: Sequence[tuple[float, float]]


def ticks_up_to(highest: float) -> list[float]:
    """Round numbers from 0 to at least `highest`, about four."""
    if not highest > 0 or not math.isfinite(highest):
        return [0.0, 1.0]
    step = _step(highest, 4)
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def ticks_between(lowest: float, highest: float) -> list[float]:
    """Round numbers from `lowest` to `highest`, which has to be larger."""
    step = _step(highest - lowest, 6)
    first, last = math.ceil(lowest / step - 1e-9), math.floor(highest / step + 1e-9)
    return [step * number for number in range(first, last + 1)]


def _step(length: float, wanted: int) -> float:
    rough = length / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)


def line_plot(title: str, lines: Sequence[Line], *, across: str, unit: str = "", mark: float | None = None) -> str:
    """A plot with its axes and legend, for embedding in a page. `mark` draws a line upright there."""
    every = [point for line in lines for point in line.points]
    left = min((x for x, _ in every), default=0.0)
    right = max((x for x, _ in every), default=1.0)
    right = right if right > left else left + 1.0
    ticks = ticks_up_to(max((y for _, y in every), default=0.0))
    top = ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg">',
        f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>',
        *_axes(left, right, ticks, place, across=across, unit=unit),
    ]
    if mark is not None and left < mark < right:
        x, _ = place(mark, 0)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for number, line in enumerate(lines):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line.points)
        parts.append(f'<polyline class="line l{number}" points="{path}"/>')
        x = WIDTH - RIGHT - 130 * (len(lines) - number)
        parts.append(f'<rect class="key l{number}" x="{x}" y="8" width="10" height="10"/>')
        parts.append(f'<text x="{x + 15}" y="17">{escape(line.name)}</text>')
    return "\n".join([*parts, "</svg>"])


def _axes(left: float, right: float, ticks: Sequence[float], place: _Place, *, across: str, unit: str) -> list[str]:
    parts: list[str] = []
    for tick in ticks:
        _, y = place(left, tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="end" x="{LEFT - 6}" y="{y + 4:.1f}">{tick:,.6g}{unit}</text>')
    for value in ticks_between(left, right):
        x, _ = place(value, 0)
        parts.append(f'<text class="middle" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}">{value:,.6g}</text>')
    parts.append(f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}">{escape(across)}</text>')
    return parts
