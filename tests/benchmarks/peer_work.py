"""What every peer is put through: the same work, in the same order, and its answers are checked.

Each measurement is boxed in time, not in jobs, because peers differ a hundredfold. No two jobs ever
carry the same large bytes, so that a cache of what was sent before is of no use.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from typing import Any, Callable, Dict, FrozenSet, List, Sequence

from .idioms import Idiom
from .jobs import echo, look_up, noop

TRIPS = 1000
TRIPS_S = 0.8
FEWEST_TRIPS = 50
STREAM_S = 0.9  # of each kind of jobs, at least, in several passes
PASS_S = 0.3
MOST_JOBS = 20_000  # in a pass
MOST_BYTES = 64 << 20  # on their way in a pass
ECHO_BYTES = {"echo_1k_per_s": 1000, "echo_100k_per_s": 100_000, "echo_1m_per_s": 1 << 20}
SHARED_BYTES = 32 << 20
SHARED_JOBS = 50
REPEATED_UP_TO_S = 1.0  # what takes longer is measured once

Measured = Dict[str, float]
CpuS = Callable[[], float]
"""Processor seconds that all processes of the peer have used since the last call."""


def measure(idiom: Idiom, cpu_s: CpuS, omit: FrozenSet[str]) -> Measured:
    """All that is measured of a running peer, but for the keys in `omit`."""
    measured = {**_round_trips(idiom), **_noop_stream(idiom, cpu_s)}
    for key, size in ECHO_BYTES.items():
        measured[key] = _echo_stream(idiom, size)
    for key, call in (("shared_s", idiom.with_shared), ("shared_plainly_s", idiom.with_shared_plainly)):
        if call is not None and key not in omit:
            measured[key] = _shared(call)
    return measured


def _round_trips(idiom: Idiom) -> Measured:
    """The middle and the slow end of one job at a time, in seconds."""
    idiom.each(noop, range(100))
    trips_s: List[float] = []
    end_s = time.perf_counter() + TRIPS_S
    while len(trips_s) < TRIPS and (time.perf_counter() < end_s or len(trips_s) < FEWEST_TRIPS):
        begin_s = time.perf_counter()
        idiom.one(noop, len(trips_s))
        trips_s.append(time.perf_counter() - begin_s)
    trips_s.sort()
    return {"p50_s": trips_s[len(trips_s) // 2], "p99_s": trips_s[len(trips_s) * 99 // 100]}


def _noop_stream(idiom: Idiom, cpu_s: CpuS) -> Measured:
    """No-op jobs a second, and the processor seconds that 10,000 of them cost everybody."""
    count = _jobs_for_a_pass(lambda jobs: _timed(idiom, noop, range(jobs)), MOST_JOBS)
    cpu_s()
    rates = _passes(lambda: count / _timed(idiom, noop, range(count)))
    return {"jobs_per_s": statistics.median(rates), "cpu_s_per_10k": cpu_s() / (len(rates) * count) * 10_000}


def _echo_stream(idiom: Idiom, size: int) -> float:
    """Jobs a second that take `size` bytes and send them back."""
    rest = os.urandom(size - 8)
    made = 0

    def one_pass(jobs: int) -> float:
        nonlocal made
        arguments = [(made + number).to_bytes(8, "big") + rest for number in range(jobs)]
        made += jobs
        return _timed(idiom, echo, arguments)

    count = _jobs_for_a_pass(one_pass, min(MOST_JOBS, MOST_BYTES // size))
    return statistics.median(_passes(lambda: count / one_pass(count)))


def _shared(call: Callable[..., List[Any]]) -> float:
    """Seconds until `SHARED_JOBS` jobs have each used an array that none of them has seen before."""
    import numpy

    call(look_up, numpy.zeros(10), range(4))  # numpy is imported everywhere now
    values = SHARED_BYTES // 8
    took_s: List[float] = []
    while not took_s or (len(took_s) < 3 and sum(took_s) < REPEATED_UP_TO_S):
        array = numpy.arange(values, dtype=float) + time.time() % 1
        gc.collect()
        begin_s = time.perf_counter()
        answers = call(look_up, array, range(SHARED_JOBS))
        took_s.append(time.perf_counter() - begin_s)
        if sorted(answers) != array[:SHARED_JOBS].tolist():
            raise AssertionError("not the right values")
    return statistics.median(took_s)


def _jobs_for_a_pass(one_pass: Callable[[int], float], most: int) -> int:
    """How many jobs take about `PASS_S`; finding that out is the warm-up as well."""
    count = min(20, most)
    while True:
        took_s = one_pass(count)
        fitting = max(1, min(most, int(count * PASS_S / took_s)))
        if fitting <= 2 * count:
            return fitting
        count = min(fitting, 10 * count)


def _passes(rate: Callable[[], float]) -> List[float]:
    """What each of several passes says."""
    rates: List[float] = []
    end_s = time.perf_counter() + STREAM_S
    while not rates or time.perf_counter() < end_s:
        rates.append(rate())
    return rates


def _timed(idiom: Idiom, func: Callable[..., Any], arguments: Sequence[Any]) -> float:
    """Seconds until all of these jobs have answered, rightly: with their argument."""
    gc.collect()
    begin_s = time.perf_counter()
    answers = idiom.each(func, arguments)
    took_s = time.perf_counter() - begin_s
    if sorted(answers) != list(arguments):
        raise AssertionError(f"{len(answers)} answers to {len(arguments)} jobs, or not the right ones")
    return took_s
