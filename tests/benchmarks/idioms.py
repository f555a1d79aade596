"""How each peer is driven, by its own best idiom for many independent jobs, with two worker processes.

One context manager each, yielding an `Idiom`. "Best" means the calls that its documentation
recommends for this: its bulk call and its way to give many jobs one large value where it has them, its
advice on settings for short tasks. A job stays a job: nothing packs several into one.

What a peer needs is imported when it starts, because that is part of a cold start.
"""

from __future__ import annotations

import contextlib
import tempfile
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional, Sequence

SLOTS = 2

Function = Callable[..., Any]


@dataclass
class Idiom:
    """The three ways in which every peer is driven."""

    each: Callable[[Function, Sequence[Any]], List[Any]]
    """A job for each argument, all submitted before the first result is asked for; results in any order."""

    one: Callable[[Function, Any], Any]
    """One job: submit, and wait for its result."""

    with_shared: Callable[[Function, Any, Sequence[Any]], List[Any]]
    """A job for each argument, with one large value as the first argument of all of them."""

    with_shared_plainly: Optional[Callable[[Function, Any, Sequence[Any]], List[Any]]] = None
    """The same for a user who knows nothing of sharing, where that is of interest."""


def _of_executor(executor: Executor) -> Idiom:
    """Anything that has `submit`."""

    def each(func: Function, arguments: Sequence[Any]) -> List[Any]:
        futures = [executor.submit(func, argument) for argument in arguments]
        return [future.result() for future in futures]

    def one(func: Function, argument: Any) -> Any:
        return executor.submit(func, argument).result()

    def with_shared(func: Function, value: Any, arguments: Sequence[Any]) -> List[Any]:
        futures = [executor.submit(func, value, argument) for argument in arguments]
        return [future.result() for future in futures]

    return Idiom(each, one, with_shared)


# --- no cluster -----------------------------------------------------------------------------


@contextlib.contextmanager
def process_pool() -> Iterator[Idiom]:
    """The standard library's pool."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(SLOTS) as executor:
        yield _of_executor(executor)


@contextlib.contextmanager
def loky() -> Iterator[Idiom]:
    """joblib's hardened pool, as its documentation starts it."""
    from loky import get_reusable_executor

    with get_reusable_executor(max_workers=SLOTS) as executor:
        yield _of_executor(executor)


@contextlib.contextmanager
def manager_farm() -> Iterator[Idiom]:
    """The farm of the textbooks on `multiprocessing.managers`."""
    from .farm import Farm

    with Farm(SLOTS) as farm:

        def each(func: Function, arguments: Sequence[Any]) -> List[Any]:
            for argument in arguments:
                farm.put(func, argument)
            return [farm.get() for _ in arguments]

        def one(func: Function, argument: Any) -> Any:
            farm.put(func, argument)
            return farm.get()

        def with_shared(func: Function, value: Any, arguments: Sequence[Any]) -> List[Any]:
            for argument in arguments:
                farm.put(func, value, argument)
            return [farm.get() for _ in arguments]

        yield Idiom(each, one, with_shared)


@contextlib.contextmanager
def bare_floor() -> Iterator[Idiom]:
    """The bare pipeline: no broker, no key, no fault handling."""
    from .floor import Floor

    with Floor(SLOTS) as floor:
        yield _of_executor(floor)  # type: ignore[arg-type]


# --- clusters -------------------------------------------------------------------------------


@contextlib.contextmanager
def cwmp() -> Iterator[Idiom]:
    """`LocalCluster` and `ClusterExecutor`; a large value for many jobs by `share`."""
    from cwmp import LocalCluster

    with LocalCluster(n=SLOTS) as cluster, cluster.executor() as executor:
        plain = _of_executor(executor)
        share = getattr(executor, "share", lambda value: value)

        def with_shared(func: Function, value: Any, arguments: Sequence[Any]) -> List[Any]:
            return plain.with_shared(func, share(value), arguments)

        yield Idiom(plain.each, plain.one, with_shared, plain.with_shared)


@contextlib.contextmanager
def dask() -> Iterator[Idiom]:
    """Dask distributed: `map` and `gather`; a large value is scattered to all workers beforehand."""
    from distributed import Client, LocalCluster

    with LocalCluster(
        n_workers=SLOTS, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster, Client(cluster) as client:

        def each(func: Function, arguments: Sequence[Any]) -> List[Any]:
            large = isinstance(arguments[0], bytes) and len(arguments[0]) > 10_000
            batch = 10 if large else 100  # the workers begin while the rest is still being sent
            return client.gather(client.map(func, arguments, pure=False, batch_size=batch))

        def one(func: Function, argument: Any) -> Any:
            return client.submit(func, argument, pure=False).result()

        def with_shared(func: Function, value: Any, arguments: Sequence[Any]) -> List[Any]:
            scattered = client.scatter(value, broadcast=True, hash=False)
            futures = [client.submit(func, scattered, argument, pure=False) for argument in arguments]
            return client.gather(futures)

        yield Idiom(each, one, with_shared)


@contextlib.contextmanager
def ray() -> Iterator[Idiom]:
    """Ray tasks; a large value is `put` into the object store once."""
    import ray

    # Its sockets live below this directory, and their paths must be short.
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as directory:
        ray.init(
            num_cpus=SLOTS, include_dashboard=False, log_to_driver=False, logging_level="error",
            _temp_dir=directory, _node_ip_address="127.0.0.1",
        )  # fmt: skip
        remotes: Dict[Function, Any] = {}

        def remote(func: Function) -> Any:
            if func not in remotes:
                remotes[func] = ray.remote(func)
            return remotes[func]

        def each(func: Function, arguments: Sequence[Any]) -> List[Any]:
            task = remote(func)
            return ray.get([task.remote(argument) for argument in arguments])

        def one(func: Function, argument: Any) -> Any:
            return ray.get(remote(func).remote(argument))

        def with_shared(func: Function, value: Any, arguments: Sequence[Any]) -> List[Any]:
            task, reference = remote(func), ray.put(value)
            return ray.get([task.remote(reference, argument) for argument in arguments])

        try:
            yield Idiom(each, one, with_shared)
        finally:
            ray.shutdown()


@contextlib.contextmanager
def parsl_htex() -> Iterator[Idiom]:
    """Parsl's high-throughput executor: apps, with prefetching as advised for short tasks."""
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    htex = HighThroughputExecutor(
        label="htex", address="127.0.0.1", max_workers_per_node=SLOTS, cores_per_worker=1,
        prefetch_capacity=100, encrypted=False, provider=LocalProvider(init_blocks=1, max_blocks=1),
    )  # fmt: skip
    config = Config(executors=[htex], strategy="none", initialize_logging=False, run_dir="parsl-runs")
    with parsl.load(config):
        apps: Dict[Function, Any] = {}

        def app(func: Function) -> Any:
            if func not in apps:
                apps[func] = parsl.python_app(func)
            return apps[func]

        def each(func: Function, arguments: Sequence[Any]) -> List[Any]:
            task = app(func)
            futures = [task(argument) for argument in arguments]
            return [future.result() for future in futures]

        def one(func: Function, argument: Any) -> Any:
            return app(func)(argument).result()

        def with_shared(func: Function, value: Any, arguments: Sequence[Any]) -> List[Any]:
            task = app(func)
            futures = [task(value, argument) for argument in arguments]
            return [future.result() for future in futures]

        yield Idiom(each, one, with_shared)


@contextlib.contextmanager
def ipyparallel() -> Iterator[Idiom]:
    """ipyparallel's load-balanced view; a large value is pushed to the engines and used by reference."""
    import ipyparallel

    with ipyparallel.Cluster(n=SLOTS, controller_ip="127.0.0.1", log_level=40) as client:
        client.wait_for_engines(SLOTS)
        engines, view = client[:], client.load_balanced_view()

        def each(func: Function, arguments: Sequence[Any]) -> List[Any]:
            return list(view.map_async(func, arguments, chunksize=1, ordered=False))

        def one(func: Function, argument: Any) -> Any:
            return view.apply_sync(func, argument)

        def with_shared(func: Function, value: Any, arguments: Sequence[Any]) -> List[Any]:
            engines.push({"shared_value": value}, block=True)
            reference = ipyparallel.Reference("shared_value")
            results = [view.apply_async(func, reference, argument) for argument in arguments]
            return [result.get() for result in results]

        yield Idiom(each, one, with_shared)


@contextlib.contextmanager
def mpi4py_futures() -> Iterator[Idiom]:
    """mpi4py's pool, in the program of rank 0 under `mpiexec -n 3 python -m mpi4py.futures`."""
    from mpi4py.futures import MPIPoolExecutor

    with MPIPoolExecutor(SLOTS) as executor:
        yield _of_executor(executor)


IDIOMS: Dict[str, Callable[[], ContextManager[Idiom]]] = {
    "cwmp": cwmp,
    "pool": process_pool,
    "loky": loky,
    "farm": manager_farm,
    "floor": bare_floor,
    "dask": dask,
    "ray": ray,
    "parsl": parsl_htex,
    "ipyparallel": ipyparallel,
    "mpi4py": mpi4py_futures,
}
