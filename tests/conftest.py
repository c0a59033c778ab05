"""What every test can use."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
from collections.abc import Generator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from hypothesis import settings

from tests.account import Account
from tests.compiled import compile_all, keep_compiled
from tests.grouping import Grouping
from tests.in_loop import Entered
from tests.servers import (
    Cluster,
    Container,
    Sentinels,
    Server,
    container_engine,
    ran,
    redis_binary,
    started,
)

# A shell that runs this in the background has it ignore SIGINT, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# An example that takes long is no failure of what is tested: the machine runs other tests as well.
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: three workers for two cores, as half of the time a test waits for something."""
    return max(round((os.cpu_count() or 1) * 1.5), 2)


@pytest.hookimpl(trylast=True)  # when there is a terminal to write to, and a folder for temporary files
def pytest_configure(config: pytest.Config) -> None:
    """Spread the tests over the workers of pytest-xdist, and give an account of the run where somebody reads it."""
    config.pluginmanager.register(Grouping(config), "socketspec-grouping")
    keep_compiled()
    if hasattr(config, "workerinput"):
        return
    compile_all()
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        config.pluginmanager.register(Account(config, reporter), "socketspec-account")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what a test logs and prints escaped where it is no text: a worker could not send it to the others."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run `async def` tests, each in an event loop of its own that reports slow or failing callbacks as errors.

    Fixtures that are an `InLoop` are entered in that loop.
    """
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    unhandled: list[dict[str, object]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
        async with AsyncExitStack() as stack:
            entered = Entered(stack)
            await pyfuncitem.obj(**{name: await entered.value(value) for name, value in arguments.items()})

    asyncio.run(main())
    assert not unhandled, f"the event loop met exceptions that nobody handled: {unhandled}"
    return True


@pytest.fixture(scope="session")
def standalone_server() -> Iterator[Server]:
    """An embedded Valkey for the whole session: use a prefix of your own, and leave it running."""
    with started():
        made = Server()
    with made:
        yield made


@pytest.fixture(scope="session")
def redis7_server() -> Iterator[Server]:
    """The system's redis-server (Debian's is 7.0, the oldest supported version), shared like `standalone_server`."""
    with started():
        made = Server(binary=redis_binary())
    with made:
        yield made


@pytest.fixture(scope="session")
def any_server(request: pytest.FixtureRequest) -> Iterator[Server | Container]:
    """A server in a container where an engine answers, else `standalone_server`."""
    if not container_engine():
        yield request.getfixturevalue("standalone_server")
        return
    with started():
        made = Container()
    with made:
        yield made


@pytest.fixture(scope="session")
def sentinel_servers() -> Iterator[Sentinels]:
    """A primary, its replica and three Sentinels for the whole session: leave them as they are."""
    with started():
        made = Sentinels()
    made.be_patient()
    with made:
        yield made


@pytest.fixture(scope="session")
def cluster_servers() -> Iterator[Cluster]:
    """Three primaries with a replica each for the whole session: leave them as they are."""
    with started():
        made = Cluster(replicas=True)
    made.be_patient()
    with made:
        yield made


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist tells the controller which servers it ran."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["servers"] = list(ran)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """The controller of pytest-xdist takes note of the servers that a worker ran."""
    for name in getattr(node, "workeroutput", {}).get("servers", ()):
        ran.setdefault(name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which servers the tests ran against."""
    if ran:
        engine = container_engine() or "no engine"
        terminalreporter.write_line(f"servers: {'; '.join(ran)}; containers: {engine}")
