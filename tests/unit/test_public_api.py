"""What `socketspec` promises: exactly these names, and `__all__` in every public module. Adding one is a decision."""

from __future__ import annotations

import importlib
import pkgutil
from typing import cast

import pytest

import socketspec

TOP_LEVEL = {
    "Broadcasts",
    "Connection",
    "Depends",
    "Emits",
    "Event",
    "EventRouter",
    "History",
    "Identity",
    "Room",
    "SocketApp",
    "__version__",
}

PROMISED = {
    "socketspec.adapters.fastapi": {"mount"},
    "socketspec.connection": {"Connection"},
    "socketspec.security.auth": {"APIKeyAuth", "AuthBackend", "JWTAuth"},
    "socketspec.security.ratelimit": {"RateLimit"},
    "socketspec.session": {"SessionConfig"},
    "socketspec.testing": {"TestClient"},
}
"""Import paths users were told; a module may have more."""


def public_modules() -> list[str]:
    """Every module without an underscore in its path, the command line left out: it is run, not imported."""
    names = [module.name for module in pkgutil.walk_packages(socketspec.__path__, "socketspec.")]
    return [
        name
        for name in names
        if not any(part.startswith("_") for part in name.split(".")) and not name.startswith("socketspec.cli")
    ]


def exported(name: str) -> tuple[str, ...] | None:
    """A module's `__all__`; None where it has none. Fails where it is anything but a tuple of its own names."""
    module = importlib.import_module(name)
    names: object = getattr(module, "__all__", None)
    if names is None:
        return None
    assert isinstance(names, tuple), f"{name}.__all__ is a {type(names).__name__}; make it a tuple"
    listed = tuple(map(str, cast("tuple[object, ...]", names)))
    assert not [missing for missing in listed if not hasattr(module, missing)]
    return listed


def test_the_package_exports_exactly_its_promised_names() -> None:
    assert set(exported("socketspec") or ()) == TOP_LEVEL


@pytest.mark.parametrize(("module", "names"), PROMISED.items(), ids=PROMISED)
def test_a_promised_import_path_works(module: str, names: set[str]) -> None:
    assert names <= set(exported(module) or ())


@pytest.mark.parametrize("name", public_modules())
def test_a_public_module_lists_its_names_once_and_none_that_is_private(name: str) -> None:
    listed = exported(name)
    if listed is None:
        assert hasattr(importlib.import_module(name), "__path__"), "only a package may export nothing"
        return
    assert len(listed) == len(set(listed))
    assert not [private for private in listed if private.startswith("_") and private != "__version__"]


def test_there_are_public_modules_to_look_at() -> None:
    assert {"socketspec.errors", "socketspec.identity"} <= set(public_modules())
