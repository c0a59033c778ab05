"""Loads the application that a command names as ``MODULE:ATTRIBUTE``, or says what to write instead."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from socketspec.adapters.asgi import ASGIApp
from socketspec.app.app import SocketApp
from socketspec.app.mounts import mounted
from socketspec.errors import ConfigurationError
from socketspec.text import did_you_mean

__all__ = ("CannotLoad", "Loaded", "load", "place_of", "unmounted_beside")

_MOST_FOLDERS: Final = 200
"""Folders that are looked into for a module that is not where it was said to be."""


class CannotLoad(Exception):
    """It cannot be loaded. The message says why, and what to write; a traceback has been printed where it helps."""


class Loaded(NamedTuple):
    """What was loaded."""

    target: str
    named: Any
    """The object that `target` names, or that its factory returned."""
    application: Any
    """What to serve: an ASGI application; the `SocketApp` itself where no application of the module has it."""
    application_name: str


def load(target: str, *, app_dir: str = "", factory: bool = False) -> Loaded:
    """Load `target`, with `app_dir` (empty: the working directory) first in the import path, as uvicorn does.

    With `factory`, the attribute is called without arguments and returns the application. What the module prints goes
    to stderr. Raises `CannotLoad`, and `ConfigurationError` as the app's declarations raise it.
    """
    folder = Path(app_dir or ".").resolve()
    if not folder.is_dir():
        raise CannotLoad(f"--app-dir {app_dir}: there is no such folder")
    name, attribute = _parts(target, folder)
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    with redirect_stdout(sys.stderr):
        module = _module(name, attribute, folder)
        found = _attribute(module, attribute)
        if factory:
            found = _made(found, target)
    if isinstance(found, SocketApp):
        around = _around(module, found)
        return Loaded(target, found, *(around or (found, target)))
    if isinstance(found, ASGIApp) or hasattr(found, "routes") or _wraps(found):
        return Loaded(target, found, found, target)
    raise CannotLoad(_unfit(found, target, module))


def place_of(wanted: object) -> str:
    """``module:attribute`` of an object, where a module has it under a name; else empty."""
    for module in sorted(_own_modules(), key=lambda each: each.__name__):
        for name, value in tuple(vars(module).items()):
            if value is wanted and not name.startswith("__"):
                return f"{module.__name__}:{name}"
    return ""


def unmounted_beside(folder: Path) -> list[SocketApp]:
    """The apps in modules of `folder` that are mounted nowhere, in the order of their modules' names."""
    found: dict[int, SocketApp] = {}
    for module in sorted(_own_modules(), key=lambda each: each.__name__):
        file = getattr(module, "__file__", None)
        if not file or "site-packages" in file or not Path(file).resolve().is_relative_to(folder):
            continue
        for value in tuple(vars(module).values()):
            if isinstance(value, SocketApp) and not value.callers.served:
                found[id(value)] = value
    return list(found.values())


def _own_modules() -> Iterator[ModuleType]:
    for name, module in tuple(sys.modules.items()):
        if name.partition(".")[0] not in _NOT_OWN and getattr(module, "__name__", "") == name:  # anything may be there
            yield module


_NOT_OWN: Final = frozenset({"socketspec", *sys.stdlib_module_names})


def _parts(target: str, folder: Path) -> tuple[str, str]:
    name, colon, attribute = target.partition(":")
    if name.endswith(".py") or "/" in name or "\\" in name:
        path = Path(name.replace("\\", "/"))
        where = f"--app-dir {path.parent.as_posix()} " if path.parent != Path() else ""
        raise CannotLoad(f"{target!r} is a file; write {where}{path.stem}:{attribute or 'app'}")
    if not name or not colon or not attribute:
        module = name or next((path.stem for path in sorted(folder.glob("*.py"))), "main")
        raise CannotLoad(f"{target!r} does not say which object of which module; write {module}:{attribute or 'app'}")
    return name, attribute


def _module(name: str, attribute: str, folder: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ConfigurationError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            _print(error)  # the module is there, but not something that it imports
            hint = ", or pip install it" if error.name else ""
            raise CannotLoad(
                f"importing {name!r} failed: there is no module {error.name!r} in {folder} or the environment; "
                f"write --app-dir FOLDER, if it is elsewhere{hint}"
            ) from error
        raise CannotLoad(f"there is no module {name!r} in {folder}; {_elsewhere(name, attribute, folder)}") from error
    except (Exception, SystemExit) as error:
        _print(error)
        raise CannotLoad(f"importing {name!r} failed with {type(error).__name__}; the reason is above") from error


def _print(error: BaseException) -> None:
    """The traceback, from the first line of the module on."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None and _is_machinery(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or filename.startswith("<frozen") or filename == importlib.__file__


def _elsewhere(name: str, attribute: str, folder: Path) -> str:
    """What to write in the place of a module that is not there."""
    first, _, rest = name.partition(".")
    hint = did_you_mean(first, sorted(_modules_in(folder)))
    if hint:
        meant = hint.split("'")[1]
        return f"did you mean {'.'.join(filter(None, (meant, rest)))}:{attribute}?"
    wanted = Path(*name.split("."))
    for number, below in enumerate(sorted(each for each in folder.glob("*/") if not each.name.startswith("."))):
        if number == _MOST_FOLDERS:
            break
        if (below / wanted).with_suffix(".py").is_file() or (below / wanted / "__init__.py").is_file():
            if (below / "__init__.py").is_file():
                return f"write {below.name}.{name}:{attribute}"
            return f"write --app-dir {below.name} {name}:{attribute}"
    return "write --app-dir FOLDER with the folder that it is in"


def _modules_in(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").is_file()):
            yield path.stem


def _attribute(module: ModuleType, attribute: str) -> Any:
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise CannotLoad(_no_attribute(module, attribute)) from error
    return found


def _no_attribute(module: ModuleType, attribute: str) -> str:
    known = [name for name in vars(module) if not name.startswith("_")]
    meant = did_you_mean(attribute, known)
    apps = _apps(module)
    if apps:
        meant = f"it has {' and '.join(f'{module.__name__}:{name}' for name, _ in apps)}"
    elif meant:
        meant = meant[0].lower() + meant[1:]
    else:
        meant = "write the name that the application has there"
    return f"module {module.__name__!r} has no {attribute!r}; {meant}"


def _made(found: Any, target: str) -> Any:
    if not callable(found):
        raise CannotLoad(f"{target!r} is {_kind(found)}, not a function that makes an application; leave --factory out")
    if isinstance(found, SocketApp | ASGIApp) or hasattr(found, "routes"):
        raise CannotLoad(f"{target!r} is an application already; leave --factory out")
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise CannotLoad(
            f"{target!r} cannot be called without arguments ({error}); give its parameters defaults, or write a "
            "function that takes none"
        ) from error
    except ValueError:
        pass  # it does not tell its parameters
    try:
        made = found()
    except ConfigurationError:
        raise
    except (Exception, SystemExit) as error:
        _print(error)
        raise CannotLoad(f"{target!r} failed with {type(error).__name__}; the reason is above") from error
    if inspect.iscoroutine(made):
        made.close()
        raise CannotLoad(f"{target!r} is async; a factory is a plain function that returns the application")
    return made


def _apps(module: ModuleType) -> list[tuple[str, Any]]:
    """The applications that a module has, by name."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if not name.startswith("_") and (isinstance(value, SocketApp | ASGIApp) or _has_routes(value))
    ]


def _has_routes(value: object) -> bool:
    return not isinstance(value, type | ModuleType) and callable(value) and hasattr(value, "routes")


def _wraps(found: Any) -> bool:
    """Whether it is middleware around an application."""
    return not isinstance(found, type | ModuleType) and callable(found) and bool(mounted(found))


def _around(module: ModuleType, socket: SocketApp) -> tuple[Any, str] | None:
    """The application of the module that `socket` is mounted on, with its name."""
    for name, application in _apps(module):
        if application is not socket and any(found.socket is socket for found in mounted(application)):
            return application, f"{module.__name__}:{name}"
    return None


def _unfit(found: Any, target: str, module: ModuleType) -> str:
    wanted = "a SocketApp, or a FastAPI or Starlette application that one is mounted on"
    if inspect.isfunction(found):
        return f"{target!r} is a function, not {wanted}; if it returns one, write --factory {target}"
    apps = [f"{module.__name__}:{name}" for name, value in _apps(module) if value is not found]
    instead = f"; the module has {' and '.join(apps)}" if apps else ""
    return f"{target!r} is {_kind(found)}, not {wanted}{instead}"


def _kind(found: object) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
