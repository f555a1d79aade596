"""Blobs that nobody needs any more are removed by a thread of its own: to free a large one takes a while."""

from __future__ import annotations

import contextlib
import os
import threading
from queue import SimpleQueue
from typing import List, Optional, Sequence

from . import shelf


class Remover:
    """Removes blobs from one shelf."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._doomed: SimpleQueue[Optional[List[str]]] = SimpleQueue()
        self._count = 0
        self._thread: Optional[threading.Thread] = None

    def remove(self, names: Sequence[str]) -> None:
        """Remove these soon. Their names are free at once."""
        aside = []
        for name in names:
            self._count += 1
            aside.append(f"x{self._count}")
            with contextlib.suppress(OSError):
                os.rename(os.path.join(self._directory, name), os.path.join(self._directory, aside[-1]))
        if self._thread is None and not self._start():
            shelf.remove(self._directory, aside)
        else:
            self._doomed.put(aside)

    def _start(self) -> bool:
        thread = threading.Thread(target=self._work, name="cwmp-remove", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no threads left
            return False
        self._thread = thread
        return True

    def close(self) -> None:
        """Remove what is left, and end."""
        self._doomed.put(None)
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            names = self._doomed.get()
            if names is None:
                return
            shelf.remove(self._directory, names)
