"""A user's program with a cluster around it: what is executed, what it sees, which signals it gets."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any, Dict, List, Optional, Sequence

from .children import FOREIGN
from .errors import UsageError


def program_arguments(command: Sequence[str]) -> List[str]:
    """What to execute for `command`: scripts (`*.py`, files not executable) run in this Python."""
    first = command[0]
    if first.endswith(".py") or (os.path.isfile(first) and not os.access(first, os.X_OK)):
        if not os.path.isfile(first):
            raise UsageError(f"no such script: {first}")
        return [sys.executable, *command]
    if shutil.which(first) is None:
        raise UsageError(f"no such command or script: {first}")
    return list(command)


def program_environment(**variables: str) -> Dict[str, str]:
    """Ours without what tells of another cluster, plus `variables`, and a checkout of cwmp importable."""
    environment = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    environment.update(variables)
    root = str(Path(__file__).resolve().parent.parent)
    if os.path.basename(root) not in ("site-packages", "dist-packages"):  # a checkout
        others = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{others}" if others else root
    return environment


class Program:
    """A context that receives our signals: before the program runs they end us, then they are for it."""

    def __init__(self) -> None:
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._held: Optional[List[int]] = None  # what arrived while the process was being made
        self._before: Dict[int, Any] = {}
        # Ctrl-C in a terminal reaches the program without us, and twice would be once too often.
        # Away from a terminal the program gets a process group of its own and all from us.
        self._at_terminal = _in_foreground()

    def __enter__(self) -> Program:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, arguments: Sequence[str], environment: Dict[str, str]) -> int:
        """Its exit status, as a shell tells it."""
        self._held = []
        try:
            self._process = subprocess.Popen(
                arguments, env=environment, preexec_fn=None if self._at_terminal else os.setpgrp
            )
        finally:
            held, self._held = self._held, None
        for number in held:
            self._on_signal(number, None)
        status = self._process.wait()
        return status if status >= 0 else 128 - status

    def _on_signal(self, number: int, _frame: Optional[FrameType]) -> None:
        if self._held is not None:
            self._held.append(number)
        elif self._process is None:
            raise SystemExit(128 + number)  # the cluster that is being started ends on the way out
        elif number != signal.SIGINT or not self._at_terminal:
            self._process.send_signal(number)


def _in_foreground() -> bool:
    """Whether our process group is the one that a terminal's Ctrl-C goes to."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
