"""A census of the standard library: parse every module of this Python, one job a file.

    python examples/stdlib_census.py                          on a cluster of its own
    bin/cwmp-local -n 4 run examples/stdlib_census.py         on one that is there

The files are parsed twice: in parallel by the cluster, then one after the other by this process.
Both passes are timed, and their answers must be the same.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import platform
import sys
import sysconfig
import time
import warnings
from collections import defaultdict
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple, Union

import cwmp

TEST_DIRECTORIES = {"test", "tests", "idle_test"}
FOREIGN_DIRECTORIES = {"site-packages", "dist-packages", "__pycache__"}
PACKAGES_SHOWN = 15
MODULES_SHOWN = 8


@dataclass(frozen=True)
class Module:
    """What one file holds."""

    lines: int
    functions: int
    classes: int
    longest: str  # name of the longest function, "" if there is none
    longest_lines: int


Outcome = Union[Module, Exception]
Outcomes = Dict[str, Outcome]
"""By path, relative to the library."""


def survey(path: str) -> Module:
    """The job: read one file, parse it, count. Whatever is wrong with the file is raised."""
    source = Path(path).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes and the like are not ours to report
        tree = ast.parse(source, path)
    functions: List[Tuple[int, str]] = []
    classes = 0
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions.append(((node.end_lineno or node.lineno) - node.lineno + 1, node.name))
        elif isinstance(node, ast.ClassDef):
            classes += 1
    longest_lines, longest = max(functions, default=(0, ""))
    return Module(len(source.splitlines()), len(functions), classes, longest, longest_lines)


def find_files(library: Path, with_tests: bool) -> List[str]:
    """Every module below `library` that belongs to it, relative to it, in order of name."""
    found = []
    for directory, subdirectories, names in os.walk(library):
        skipped = FOREIGN_DIRECTORIES if with_tests else FOREIGN_DIRECTORIES | TEST_DIRECTORIES
        subdirectories[:] = [name for name in subdirectories if name not in skipped]
        inside = Path(directory).relative_to(library)
        found += [str(inside / name) for name in names if name.endswith(".py")]
    return sorted(found)


@contextlib.contextmanager
def executor_of_a_cluster() -> Iterator[Tuple[Executor, str]]:
    """An executor on the cluster that is up, or on one made for this program; and which it is."""
    try:
        executor = cwmp.ClusterExecutor()
    except cwmp.ConnectError:
        with cwmp.LocalCluster() as cluster, cluster.executor() as executor:
            yield executor, f"a cluster of its own at {cluster.address}"
    else:
        with executor:
            yield executor, "the cluster that was up"


def in_parallel(executor: Executor, library: Path, files: List[str]) -> Outcomes:
    """Survey all files on the cluster; an exception comes back with its own type."""
    futures = {file: executor.submit(survey, str(library / file)) for file in files}
    return {file: _outcome(future.result) for file, future in futures.items()}


def one_by_one(library: Path, files: List[str]) -> Outcomes:
    """Survey all files in this process."""
    return {file: _outcome(partial(survey, str(library / file))) for file in files}


def _outcome(call: Callable[[], Module]) -> Outcome:
    try:
        return call()
    except cwmp.CwmpError:
        raise  # the cluster's trouble, not the file's
    except Exception as error:
        return error


def timed(call: Callable[[], Outcomes]) -> Tuple[Outcomes, float]:
    """What the call returns, and how many seconds it took."""
    begin_s = time.perf_counter()
    return call(), time.perf_counter() - begin_s


def package_of(file: str) -> str:
    """The first part of the path; modules that belong to no package count together."""
    return file.split(os.sep)[0] if os.sep in file else "(modules)"


def print_packages(modules: Dict[str, Module]) -> None:
    """One line a package, the largest first."""
    groups: Dict[str, Dict[str, Module]] = defaultdict(dict)
    for file, module in modules.items():
        groups[package_of(file)][file] = module
    ranked = sorted(groups.items(), key=lambda item: -sum(module.lines for module in item[1].values()))
    rest = {file: module for _, members in ranked[PACKAGES_SHOWN:] for file, module in members.items()}
    print(f"{'package':<14}{'files':>6}{'lines':>9}{'functions':>11}{'classes':>9}  longest function")
    for name, members in ranked[:PACKAGES_SHOWN]:
        print_package(name, members)
    if rest:
        print_package(f"{len(ranked) - PACKAGES_SHOWN} more", rest)
    print_package("total", modules)


def print_package(name: str, members: Dict[str, Module]) -> None:
    """One line of the table."""
    lines, functions, classes = totals(members.values())
    longest = longest_function(members)
    print(f"{name:<14}{len(members):>6,}{lines:>9,}{functions:>11,}{classes:>9,}  {longest}")


def totals(modules: Iterable[Module]) -> Tuple[int, int, int]:
    """Lines, functions and classes of all of these."""
    counts = [(module.lines, module.functions, module.classes) for module in modules]
    lines, functions, classes = (sum(column) for column in zip((0, 0, 0), *counts))
    return lines, functions, classes


def longest_function(modules: Dict[str, Module]) -> str:
    """Its name, its length and its file, as people read it."""
    file, module = max(modules.items(), key=lambda item: item[1].longest_lines)
    return f"{module.longest}, {module.longest_lines:,} lines ({file})" if module.longest else "none"


def print_largest(modules: Dict[str, Module]) -> None:
    """The modules with the most lines."""
    print(f"\n{'largest modules':<36}{'lines':>9}{'functions':>11}{'classes':>9}")
    for file in sorted(modules, key=lambda file: -modules[file].lines)[:MODULES_SHOWN]:
        module = modules[file]
        print(f"{file:<36}{module.lines:>9,}{module.functions:>11,}{module.classes:>9,}")


def print_failures(failures: Dict[str, Exception]) -> None:
    """Which files could not be parsed, and why."""
    print(f"\nfiles that failed: {len(failures) or 'none'}")
    for file, error in failures.items():
        print(f"  {file}: {type(error).__name__}: {error}")


def print_summary(files: int, modules: Dict[str, Module], where: str) -> None:
    """What one remembers of the library."""
    lines, functions, classes = totals(modules.values())
    parsed = len(modules)
    print(f"\nThe standard library of Python {platform.python_version()}, in short")
    print(f"  It has {files:,} modules; {parsed:,} of them parse.")
    print(f"  They hold {lines:,} lines, {functions:,} functions and {classes:,} classes,")
    print(f"  {lines / parsed:,.0f} lines and {functions / parsed:,.0f} functions a module on average.")
    print(f"  The longest function is {longest_function(modules)}.")
    print(f"  They were parsed on {where}.")


def print_speed_up(parallel_s: float, serial_s: float) -> None:
    """What the cluster was good for."""
    print(f"  In parallel that took {parallel_s:.2f} s, from the first submit to the last result,")
    print(f"  and one after the other, in this process and measured right after, {serial_s:.2f} s:")
    print(f"  a speed-up of {serial_s / parallel_s:.2f} on {usable_cores()} usable cores.")
    print("  Both ways gave the same answers.")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def same(left: Outcome, right: Outcome) -> bool:
    """Whether both passes say the same of a file."""
    return left == right or (type(left) is type(right) and str(left) == str(right))


def main(limit: Optional[int], with_tests: bool) -> int:
    """Take the census and print it; the exit status says whether both passes agree."""
    library = Path(sysconfig.get_path("stdlib"))
    files = find_files(library, with_tests)[:limit]
    for file in files:
        (library / file).read_bytes()  # so that both passes find every file in memory
    print(f"Parsing {len(files):,} modules of {library}\n", flush=True)
    with executor_of_a_cluster() as (executor, where):
        outcomes, parallel_s = timed(lambda: in_parallel(executor, library, files))
    expected, serial_s = timed(lambda: one_by_one(library, files))
    modules = {file: outcome for file, outcome in outcomes.items() if isinstance(outcome, Module)}
    failures = {file: outcome for file, outcome in outcomes.items() if isinstance(outcome, Exception)}
    if modules:
        print_packages(modules)
        print_largest(modules)
    print_failures(failures)
    if modules:
        print_summary(len(files), modules, where)
    different = [file for file in files if not same(outcomes[file], expected[file])]
    if different:
        print(f"\nthe two passes disagree about {', '.join(different)}", file=sys.stderr)
        return 1
    print_speed_up(parallel_s, serial_s)
    return 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Parse the standard library, one job a file.")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N files")
    parser.add_argument("--tests", action="store_true", help="its own tests, too: some cannot be parsed")
    options = parser.parse_args()
    if options.limit is not None and options.limit < 1:
        parser.error("--limit must be at least 1")
    return options


if __name__ == "__main__":
    arguments = parse_options()
    try:
        sys.exit(main(arguments.limit, arguments.tests))
    except KeyboardInterrupt:
        sys.exit("interrupted")
