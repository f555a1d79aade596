"""Where a job finds itself, and what it may have moved: put right before the next one."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Dict, Optional, Set, TextIO, Tuple

from . import defaults
from .functions import Place

_Stamp = Tuple[int, int]  # modification time in ns, and size


class Surroundings:
    """The directory, module path, streams and recursion limit of a slot."""

    def __init__(self) -> None:
        self._own_cwd = os.getcwd()
        self._own_path = [entry for entry in sys.path if entry not in ("", self._own_cwd)]
        self._use(sys.stdin, sys.stdout, sys.stderr)
        self._copies = [(os.dup(fd), fd) for fd in (0, 1, 2)]
        self._recursion_limit = sys.getrecursionlimit()
        self._sources = UserSources()
        self._place: Optional[Place] = None
        self._cwd = self._own_cwd
        self._path = list(self._own_path)

    def enter(self, place: Place) -> bool:
        """Stand where the client stands: its directory, and its module path before our own.

        True if modules of the user's were dropped because their files have changed.
        """
        dropped = False
        if place is not self._place and place != self._place:
            self._place = place
            self._cwd = self._directory(place.cwd)
            own = set(self._own_path)
            self._path = [entry for entry in place.path if entry not in own] + self._own_path
            dropped = self._sources.refresh(place.session)
        if sys.__dict__.get("path") != self._path:
            sys.path = list(self._path)
        try:
            moved = os.getcwd() != self._cwd
        except OSError:
            moved = True
        if moved:
            os.chdir(self._cwd)
        return dropped

    def _use(self, stdin: TextIO, stdout: TextIO, stderr: TextIO) -> None:
        """These are the standard streams that every job finds."""
        self._streams = (stdin, stdout, stderr)
        self._flushes = (stdout.flush, stderr.flush)

    def flush(self) -> None:
        """Let out what jobs printed without an end of line."""
        for flush in self._flushes:
            try:
                flush()
            except (OSError, ValueError):
                pass  # nobody reads it any more, the disk is full, or the job closed it

    def restore(self) -> None:
        """Undo what a job did to the standard streams and the recursion limit."""
        for copy, fd in self._copies:
            os.dup2(copy, fd)
        stdin, stdout, stderr = self._streams
        now = sys.__dict__.get  # they may have been deleted
        if now("stdin") is not stdin or now("stdout") is not stdout or now("stderr") is not stderr:
            sys.stdin, sys.stdout, sys.stderr = self._streams
        try:
            unusable = stdout.closed or stderr.closed
        except ValueError:  # detached
            unusable = True
        if unusable:
            sys.stdout = open(1, "w", buffering=1, closefd=False)
            sys.stderr = open(2, "w", buffering=1, closefd=False)
            self._use(stdin, sys.stdout, sys.stderr)
        if sys.getrecursionlimit() != self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)

    def note_imports(self) -> None:
        """After some jobs: remember from which files they have imported."""
        self._sources.note()

    def _directory(self, wanted: Optional[str]) -> str:
        """The client's directory; where this node lacks it, our own, and a word about that."""
        if wanted and os.path.isdir(wanted):
            return wanted
        print(
            f"cwmp-worker: the client's directory {wanted} is not on this node; "
            f"its jobs run in {self._own_cwd}",
            file=sys.stderr,
        )
        return self._own_cwd


class UserSources:
    """The files of the modules that jobs have imported from outside the Python installation.

    Slots outlive programs. When the next run of a program comes with an edited module, it must not
    meet the old one: if any of these files has changed, all of their modules are imported anew.
    """

    def __init__(self) -> None:
        self._installed = tuple(
            os.path.join(root, "") for root in {sys.prefix, sys.base_prefix, os.path.dirname(__file__)}
        )
        self._stamps: Dict[str, Tuple[str, Optional[_Stamp]]] = {}  # module name -> file, stamp
        self._sessions: Set[str] = set()  # clients that have been checked for
        self._seen = len(sys.modules)
        self._names = set(sys.modules)

    def note(self) -> None:
        """Look for modules that are new since the last call."""
        if len(sys.modules) == self._seen:
            return
        for name in [name for name in list(sys.modules) if name not in self._names]:
            file = _file_of(name)
            if file and not file.startswith(self._installed):
                self._stamps[name] = (file, _stamp(file))
        self._names = set(sys.modules)
        self._seen = len(self._names)

    def refresh(self, session: str) -> bool:
        """At the first job of a client: forget the user's modules if a file has changed."""
        if session in self._sessions:
            return False
        if len(self._sessions) >= defaults.REMEMBERED_SESSIONS:
            self._sessions.clear()
        self._sessions.add(session)
        if all(_stamp(file) == stamp for file, stamp in self._stamps.values()):
            return False
        for name in self._stamps:
            sys.modules.pop(name, None)
        self._stamps.clear()
        importlib.invalidate_caches()
        self._names = set(sys.modules)
        self._seen = len(self._names)
        return True


def _file_of(module_name: str) -> Optional[str]:
    """The source of a module; anything may stand in `sys.modules`, and do anything when it is looked at."""
    try:
        file = sys.modules[module_name].__file__
    except Exception:
        return None
    return file if isinstance(file, str) else None


def _stamp(file: str) -> Optional[_Stamp]:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
