"""The report of a run: one HTML file with its plots in it, which fetches nothing and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib import resources
from string import Template

from socketspec import __version__
from socketspec.cli.bench.counting import Histogram
from socketspec.cli.bench.plots import Line, line_plot
from socketspec.cli.bench.result import Result, options_of

__all__ = ("render",)


def render(result: Result) -> str:
    """The page."""
    options = options_of(result.load)
    remarks = "\n".join(f'<p class="remark">{escape(remark)}</p>' for remark in result.remarks())
    template = Template(resources.files("socketspec.cli.bench").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        url=escape(str(options["url"])),
        started=escape(result.started),
        version=escape(__version__),
        remarks=remarks,
        summary=_table(result.rows()),
        over_time="\n".join(_plots_over_time(result)),
        latency=_latency_plot(result.counts.latency),
        options=_table((name.replace("_", " "), _shown(value)) for name, value in options.items()),
    )


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,g}" if isinstance(value, int | float) else str(value) or "none"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    lines = (f"<tr><th>{escape(name.strip())}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>\n{chr(10).join(lines)}\n</table>"


def _plots_over_time(result: Result) -> list[str]:
    each = result.interval
    points = [((number + 0.5) * each - result.start, point) for number, point in sorted(result.points.items())]
    across = "seconds from the first message"
    running = [(at, point) for at, point in points if at > 0]
    timed = [(at, point.latency) for at, point in running if point.latency.count]
    rates = [
        Line("delivered", [(at, point.delivered / each) for at, point in running]),
        Line("published", [(at, point.published / each) for at, point in running]),
    ]
    latencies = [
        Line("p99", [(at, times.percentile(0.99) / 1e6) for at, times in timed]),
        Line("p50", [(at, times.percentile(0.5) / 1e6) for at, times in timed]),
    ]
    open_connections = [Line("open", [(at, point.open) for at, point in points])]
    return [
        line_plot("Messages a second", rates, across=across),
        line_plot("Latency", latencies, across=across, unit=" ms"),
        line_plot("Open connections", open_connections, across=across, mark=0.0),
    ]


def _latency_plot(latency: Histogram) -> str:
    """Latency by percentile, with the last nines drawn as wide as the first."""
    nines = [number / 20 for number in range(81)]  # 10 ** -0 to 10 ** -4 are left over
    points = [(nine, latency.percentile(1 - 10**-nine) / 1e6) for nine in nines if latency.count * 10**-nine >= 1]
    line = Line("latency", points or [(0.0, 0.0)])
    return line_plot("Latency by percentile", [line], across="nines: 1 is 90 %, 2 is 99 %, 3 is 99.9 %", unit=" ms")
