"""No secrets in the log: a filter that removes the queries of URLs, where tokens, keys and sessions are."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, Final

__all__ = ("RedactQuery",)


class RedactQuery(logging.Filter):
    """Removes the queries of URLs from log records."""

    _QUERY: Final = re.compile(r"(/[^\s?]*)\?\S+")
    _REPLACED: Final = r"\1?[redacted]"

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through, without queries."""
        if isinstance(record.msg, str):
            record.msg = self._without(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(map(self._clean, record.args))
        elif isinstance(record.args, Mapping):
            record.args = {name: self._clean(value) for name, value in record.args.items()}
        return True

    def _clean(self, value: Any) -> Any:
        """An argument of a message, without queries. An object that shows one, such as httpx's URLs, becomes text."""
        if isinstance(value, str):
            return self._without(value)
        if value is None or isinstance(value, bool | int | float):
            return value
        try:
            text = str(value)
        except Exception:
            return value
        without = self._without(text)
        return value if without == text else without

    def _without(self, text: str) -> str:
        return self._QUERY.sub(self._REPLACED, text) if "?" in text else text
