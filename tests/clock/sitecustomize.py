"""In a process of a test that sets the clock: its wall clock is as many seconds off as the file says."""

import datetime
import os
import time

_FILE = os.environ["CWMP_TEST_CLOCK"]
_time, _time_ns = time.time, time.time_ns


def _offset_s() -> int:
    with open(_FILE) as file:
        return int(file.read() or 0)


class _Datetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):  # type: ignore[no-untyped-def]
        return cls.fromtimestamp(time.time(), tz)


time.time = lambda: _time() + _offset_s()
time.time_ns = lambda: _time_ns() + _offset_s() * 10**9
datetime.datetime = _Datetime  # type: ignore[misc]
