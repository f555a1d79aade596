"""What ends a contender when its benchmark is gone, however that ended."""

from __future__ import annotations

import os
import signal
import threading


def watch_benchmark() -> None:
    """From now on interrupt the main thread, as Ctrl-C would, when standard input ends."""
    threading.Thread(target=_watch, name="watch-benchmark", daemon=True).start()


def _watch() -> None:
    while os.read(0, 1):
        pass
    main_thread = threading.main_thread().ident
    if main_thread is not None:
        signal.pthread_kill(main_thread, signal.SIGINT)
