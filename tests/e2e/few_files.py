"""``socketspec`` in a process that may open few files: ``python -m tests.e2e.few_files SOFT HARD serve …``."""

from __future__ import annotations

import resource
import sys

from socketspec.cli.main import main

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
    sys.exit(main(sys.argv[3:]))
