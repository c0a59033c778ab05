"""Runs `socketspec demo` as a process of its own, on a port the system chooses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ("COMMAND", "ROOT", "Demo", "run", "running_demo")

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (sys.executable, "-m", "socketspec.cli.main")
TIMEOUT = 30.0


def run(*arguments: str, backend: str = "", stdin: str = "", folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the `socketspec` command to its end, in `folder`."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        cwd=folder,
        check=False,
        input=stdin,
        env={**os.environ, "SOCKETSPEC_BACKEND": backend or "memory", "PYTHONPATH": str(ROOT)},
    )


class Demo:
    """A running demo."""

    def __init__(self, *options: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, "demo", "--port", "0", *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        # Reading its first lines waits for the process; the timer bounds that.
        timer = threading.Timer(TIMEOUT, self.process.kill)
        timer.start()
        try:
            self.greeting = ""
            while "Ctrl-C" not in self.greeting and (line := self._output().readline()):
                self.greeting += line
        finally:
            timer.cancel()
        self.hosts = list(dict.fromkeys(re.findall(r"http://(\S+?:\d+)", self.greeting)))
        """Where the nodes are."""
        if not self.hosts:
            self.process.kill()
            raise AssertionError(f"the demo did not say where it is: {self.greeting}{self._output().read()}")
        self.host = self.hosts[0]

    def _output(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def url(self, path: str = "/", node: int = 0) -> str:
        """The address of a page."""
        return f"http://{self.hosts[node]}{path}"

    def socket_url(self, name: str, node: int = 0) -> str:
        """The address to connect to under a name."""
        return f"ws://{self.hosts[node]}/ws?name={name}"

    def read_line(self) -> str:
        """The next line that it prints."""
        return self._output().readline()

    def end(self, signal_number: int = signal.SIGINT) -> tuple[int, str]:
        """Send a signal and wait for the end: the exit status and what was printed after the greeting."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        output, _ = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, output


@contextmanager
def running_demo(*options: str) -> Iterator[Demo]:
    """A demo that is ended with Ctrl-C; fails if that is not clean or if it had anything to complain about."""
    demo = Demo(*options)
    try:
        yield demo
        status, output = demo.end()
        assert status == 0, output
        assert output.strip() == "", output
    finally:
        if demo.process.poll() is None:
            demo.process.kill()
            demo.process.communicate()
