"""The metrics that rules and dashboard may name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import promql_parser as promql

from socketspec.adapters.prometheus import NAMES

__all__ = ("HISTOGRAMS", "KNOWN", "names_in", "selectors")

HISTOGRAMS: Final = frozenset(name for name in NAMES if re.search(r"(_seconds|_recipients)$", name))
KNOWN: Final = frozenset(
    {name for name in NAMES if name not in HISTOGRAMS}
    | {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    | {"up"}
)
"""Names of series that a scrape of a node has; `up` is Prometheus' own."""


def selectors(expression: str) -> Iterable[promql.VectorSelector]:
    """Every selector in `expression`. Raises `ValueError` where it does not parse."""
    found: list[promql.VectorSelector] = []

    def visit(node: promql.Expr) -> bool:
        if isinstance(node, promql.VectorSelector):
            found.append(node)
        return True

    promql.walk(promql.parse(expression), visit)
    return found


def names_in(expression: str) -> set[str]:
    """The metrics that `expression` names."""
    return {selector.name or "" for selector in selectors(expression)}
