"""Comparing large pieces of memory at the speed of memory: `==` of two memoryviews is 50 times slower."""

from __future__ import annotations

import ctypes
import functools
from typing import Any, Callable, Tuple, Union

Buffer = Union[bytes, bytearray, memoryview]


class _PyBuffer(ctypes.Structure):
    """`Py_buffer` of Python's C interface."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


@functools.cache
def _functions() -> Tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """memcmp, PyObject_GetBuffer and PyBuffer_Release."""
    compare = ctypes.CDLL(None).memcmp
    compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    get, release = ctypes.pythonapi.PyObject_GetBuffer, ctypes.pythonapi.PyBuffer_Release
    get.argtypes = [ctypes.py_object, ctypes.POINTER(_PyBuffer), ctypes.c_int]
    release.argtypes = [ctypes.POINTER(_PyBuffer)]
    release.restype = None
    return compare, get, release


def equal(one: Buffer, other: Buffer) -> bool:
    """Whether two contiguous pieces of memory hold the same bytes.

    >>> equal(b"some bytes", memoryview(bytearray(b"some bytes")))
    True
    """
    compare, get, release = _functions()
    first, second = _PyBuffer(), _PyBuffer()
    get(one, ctypes.byref(first), 0)  # raises BufferError where it is not contiguous
    try:
        get(other, ctypes.byref(second), 0)
        try:
            return bool(first.len == second.len and not compare(first.buf, second.buf, first.len))
        finally:
            release(ctypes.byref(second))
    finally:
        release(ctypes.byref(first))
