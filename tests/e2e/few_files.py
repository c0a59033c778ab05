"""``socketspec`` in a process that may open few files, on an event loop of choice.

python -m tests.e2e.few_files asyncio|uvloop SOFT HARD serve …
"""

from __future__ import annotations

import resource
import sys

from socketspec.cli.main import main

if sys.argv[1:2] == ["asyncio"]:  # also in workers, which import this module anew, with the same arguments
    sys.modules["uvloop"] = None  # type: ignore[assignment] # how Python is told that there is none

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[3])))
    sys.exit(main(sys.argv[4:]))
