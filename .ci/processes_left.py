"""Print the processes that carry NAME=VALUE in their environment; fail if there are any after a moment.

    python .ci/processes_left.py NAME VALUE
"""

from __future__ import annotations

import sys
import time

import psutil

PATIENCE_S = 5.0  # a process that was told to end may need this long on a busy machine


def marked(name: str, value: str) -> list[str]:
    """Pid and command line of each such process but this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != psutil.Process().pid and process.environ().get(name) == value:
                found.append(f"{process.pid} {process.status()} {' '.join(process.cmdline())}")
        except psutil.Error:
            continue  # ended meanwhile, or another user's
    return found


def main() -> int:
    """Look until there are none or patience ends; returns the exit status."""
    name, value = sys.argv[1:]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        left = marked(name, value)
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    print("\n".join(left) or "none")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
