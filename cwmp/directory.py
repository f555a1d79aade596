"""The working directory, asked for on every `submit`, and so without letting other threads run meanwhile.

`os.getcwd()` gives the interpreter away, and who submits gets it back only when a thread that reads results
is through with some of them: that was a quarter of what `submit` cost.
"""

from __future__ import annotations

import ctypes
from typing import Callable, Optional

_ROOM = 4096  # bytes; a longer path is no error, it only cannot be told from another one

_getcwd: Callable[..., Optional[bytes]] = ctypes.PyDLL(None).getcwd
_getcwd.restype = ctypes.c_char_p  # type: ignore[attr-defined]
_buffer = ctypes.create_string_buffer(_ROOM)  # of which each call makes a copy before another thread can run


def current() -> Optional[bytes]:
    """The path of the working directory; None where it has been deleted, or is too long to say.

    >>> import os
    >>> current() == os.fsencode(os.getcwd())
    True
    """
    return _getcwd(_buffer, _ROOM)
