"""Build the sdist and from it the wheel into dist/, install the wheel alone into a clean environment, and use it.

`tests/e2e/test_packaging.py` looks deeper; this says in seconds whether what would be released starts at all.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

USE_IT = """
import importlib.metadata, sys
import socketspec
assert socketspec.__version__ == importlib.metadata.version("socketspec"), "version and metadata differ"
socketspec.SocketApp()
loaded = {"fastapi", "starlette", "uvicorn", "redis"} & set(sys.modules)
assert not loaded, f"importing socketspec imported {loaded}"
print("socketspec", socketspec.__version__, "from", socketspec.__file__)
"""


def main() -> None:
    """Build, install, use; exit with a sentence where one of them fails."""
    for old in ROOT.glob("dist/socketspec-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", str(ROOT / "dist"), str(ROOT), quiet=True)
    (wheel,) = ROOT.glob("dist/socketspec-*.whl")
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", folder)
        binaries = Path(folder) / ("Scripts" if os.name == "nt" else "bin")
        run(str(binaries / "python"), "-m", "pip", "install", "--quiet", str(wheel))
        run(str(binaries / "python"), "-I", "-c", USE_IT, cwd=folder)
        run(str(binaries / "socketspec"), "--help", cwd=folder, quiet=True)
    print(f"{wheel.relative_to(ROOT)} installs and starts")


def run(*command: str, cwd: str | None = None, quiet: bool = False) -> None:
    """Run `command`; with `quiet`, its output is shown only if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=quiet, text=True, check=False)
    if done.returncode:
        print(done.stdout or "", done.stderr or "", sep="\n", file=sys.stderr)
        sys.exit(f"failed with exit code {done.returncode}: {' '.join(command)}")


if __name__ == "__main__":
    main()
