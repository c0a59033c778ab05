"""Which path of an application a test connects to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from socketspec.app.mounts import Mounted

__all__ = ("path_of",)

_VARIABLE: Final = re.compile(r"\{(\w+)(?::\w+)?\}")


def path_of(places: Sequence[Mounted], path: str | None, values: Mapping[str, Any]) -> str:
    """The path to connect to. Raises `ValueError` where that has to be said, with what there is to choose from."""
    if path is None:
        paths = sorted({place.path for place in places})
        if len(paths) != 1:
            listed = ", ".join(map(repr, paths)) or "none that can be found"
            raise ValueError(f"There are {len(paths)} sockets to connect to: pass connect(path=…). Mounted: {listed}.")
        path = paths[0]
    missing = [name for name in _VARIABLE.findall(path) if name not in values]
    if missing:
        raise ValueError(
            f"The socket is mounted at {path!r}: pass connect(path=…) with values in it, or "
            f"connect(path_params={{{', '.join(f'{name!r}: …' for name in missing)}}})."
        )
    return _VARIABLE.sub(lambda found: str(values[found[1]]), path)
