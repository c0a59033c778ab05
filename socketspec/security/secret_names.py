"""Names of headers, query parameters and cookies whose values are credentials, for those who keep them out of logs.

    hide_in_logs("x-tenant-pin")

An auth backend of your own calls this for what it reads; `APIKeyAuth` does by itself.
"""

from __future__ import annotations

from socketspec.errors import ConfigurationError

__all__ = ("hidden_in_logs", "hide_in_logs")

MAX_NAMES = 100
"""How many names there may be: each is looked for in every record."""

_names: frozenset[str] = frozenset()  # replaced as a whole: the log filter asks for it with every record


def hide_in_logs(*names: str) -> None:
    """From now on no log of `socketspec serve` shows the values of headers, parameters and cookies of these names.

    Raises `ConfigurationError` for what cannot be a name, and beyond 100 names.
    """
    global _names
    for name in names:
        if not name or len(name) > 200 or not name.isprintable():
            raise ConfigurationError(f"hide_in_logs({name[:80]!r}): pass the name of a header, parameter or cookie.")
        if len(_names) >= MAX_NAMES and name.lower() not in _names:
            raise ConfigurationError(f"hide_in_logs({name!r}): there are {MAX_NAMES} names already.")
        _names |= {name.lower()}


def hidden_in_logs() -> frozenset[str]:
    """The names, in small letters."""
    return _names
