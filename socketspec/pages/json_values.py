"""What JSON can say of a value: it has no infinities and no NaN (RFC 8259, section 6)."""

from __future__ import annotations

import math
from typing import Any

__all__ = ("finite",)


def finite(value: Any) -> Any:
    """`value` without numbers that JSON does not have: infinities and NaN."""
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
        left_out = [f"{key} is {item}" for key, item in items if _is_not_finite(item)]
        tidy = {key: finite(item) for key, item in items if not _is_not_finite(item)}
        return {**tidy, "$comment": f"{', '.join(left_out)}, which JSON cannot say."} if left_out else tidy
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if _is_not_finite(value) else value


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
