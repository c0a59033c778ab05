"""A plot as SVG, written by hand: three panels of lines over a logarithmic axis.

Every colour is of middle lightness, so that it can be read on a light and on a dark page alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Final, NamedTuple

INK: Final = "#7b818c"
GRID: Final = "#8a909b"
COLOURS: Final = ("#2f81f7", "#d9730d", "#3a9a5b")
DASHES: Final = ("", "6 4", "2 4")
WIDTH, HEIGHT, TOP, BOTTOM, LEFT, GAP = 330, 300, 64, 46, 60, 26
FONT: Final = "font-family='system-ui, sans-serif' fill='" + INK + "'"


class Line(NamedTuple):
    """One curve: (x, y) pairs."""

    label: str
    points: Sequence[tuple[float, float]]


class Panel(NamedTuple):
    """One diagram; x is logarithmic, y begins at 0."""

    title: str
    x_label: str
    lines: Sequence[Line]


def short(value: float) -> str:
    """1500 as 1.5k, 65536 as 64Ki where it is a power of two from 1024 on."""
    if value >= 1024 and math.log2(value).is_integer():
        return f"{value / 1024:g}Ki"
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def ceiling(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value)


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12, bold: bool = False) -> str:
    weight = " font-weight='600'" if bold else ""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='{size}'{weight} {FONT}>{escape(text)}</text>"
    )


class _Axes:
    """Where a panel's values are drawn."""

    def __init__(self, panel: Panel, left: float) -> None:
        xs = [x for line in panel.lines for x, _ in line.points]
        self.left = left + LEFT
        self.right = left + WIDTH - 8
        self.top, self.bottom = TOP, HEIGHT - BOTTOM
        self.highest = ceiling(max(y for line in panel.lines for _, y in line.points))
        self.ticks = sorted(set(xs))
        self._low, self._high = math.log(self.ticks[0]), math.log(self.ticks[-1])

    def x(self, value: float) -> float:
        part = (math.log(value) - self._low) / ((self._high - self._low) or 1)
        return self.left + 10 + part * (self.right - self.left - 20)

    def y(self, value: float) -> float:
        return self.bottom - value / self.highest * (self.bottom - self.top)


def _panel(panel: Panel, left: float) -> list[str]:
    axes = _Axes(panel, left)
    made = [_text((axes.left + axes.right) / 2, TOP - 16, panel.title, size=13, bold=True)]
    for step in range(5):
        value = axes.highest * step / 4
        y = axes.y(value)
        made.append(
            f"<line x1='{axes.left:.1f}' x2='{axes.right:.1f}' y1='{y:.1f}' y2='{y:.1f}' stroke='{GRID}' "
            f"stroke-opacity='{0.8 if not step else 0.3}'/>"
        )
        made.append(_text(axes.left - 6, y + 4, short(value), anchor="end", size=11))
    made += [_text(axes.x(tick), axes.bottom + 16, short(tick), size=11) for tick in axes.ticks]
    made.append(_text((axes.left + axes.right) / 2, axes.bottom + 36, panel.x_label))
    for number, line in enumerate(panel.lines):
        made += _line(line, axes, COLOURS[number], DASHES[number])
    return made


def _line(line: Line, axes: _Axes, colour: str, dashes: str) -> list[str]:
    places = [(axes.x(x), axes.y(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashed = f" stroke-dasharray='{dashes}'" if dashes else ""
    dots = [
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'>"
        f"<title>{escape(line.label)}, {short(value)}: {amount:,.0f}/s</title></circle>"
        for (x, y), (value, amount) in zip(places, line.points, strict=True)
    ]
    return [f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'{dashed}/>", *dots]


def _legend(labels: Sequence[str]) -> list[str]:
    made, x = [], float(LEFT)
    for number, label in enumerate(labels):
        dashed = f" stroke-dasharray='{DASHES[number]}'" if DASHES[number] else ""
        made.append(
            f"<line x1='{x}' x2='{x + 26}' y1='18' y2='18' stroke='{COLOURS[number]}' stroke-width='2'{dashed}/>"
        )
        made.append(_text(x + 33, 22, label, anchor="start"))
        x += 60 + 7 * len(label)
    return made


def svg(panels: Sequence[Panel], description: str) -> str:
    """The panels side by side, with one legend for all of them."""
    width = len(panels) * WIDTH + (len(panels) - 1) * GAP
    labels = [line.label for line in panels[0].lines]
    body = _legend(labels)
    for number, panel in enumerate(panels):
        body += _panel(panel, number * (WIDTH + GAP))
    return "\n".join(
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {HEIGHT}' role='img'>",
            f"<title>{escape(description)}</title>",
            *body,
            "</svg>\n",
        )
    )
