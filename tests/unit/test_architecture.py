"""The rules of the house, read off the source: who may import whom, and what every module keeps to.

A new module of `cwmp` needs a row in `ROWS`, chosen so that it imports only from rows above.
"""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "cwmp"

# A room imports only from the rows above its own, never from its neighbours in the row.
ROWS: Tuple[Tuple[str, ...], ...] = (
    ("errors", "defaults", "ids", "messages"),
    ("account", "addresses", "at_exit", "blobs", "children", "cpus", "deaths", "departure", "descriptors"),
    ("directory", "encryption", "experience", "interrupts", "outbox", "patience"),
    ("gpus", "hearsay", "home", "ingredients", "memory", "oom", "packing", "place", "records", "shelf"),
    ("captures", "frames", "references", "shortcut", "stock", "tls"),
    ("handshakes",),
    ("guardian", "ledger", "loop", "payload", "program", "rendezvous", "shared", "transport"),
    ("echo", "entrance", "functions", "remover", "returning"),
    ("broker", "collector", "dial", "line", "server", "surroundings", "timelimit", "transfers"),
    ("carriers", "depot", "loaded", "members", "membership", "standing"),
    ("link", "shortage", "slot", "uploads"),
    ("session",),
    ("futures", "joining", "master", "outcomes", "porter"),
    ("client", "larder", "pool", "streams"),
    ("values",),
    ("worker",),
    ("agent",),
    ("executor",),
    ("background", "local"),
    ("slurm",),
    ("cli",),
    ("__main__",),
)
# The same inside the room that has many modules.
SLURM_ROWS: Tuple[Tuple[str, ...], ...] = (
    ("commands", "logs", "masters", "options", "reasons"),
    ("records", "scripts", "seats"),
    ("keeper", "submission", "view"),
    ("finding", "here", "look", "waiting"),
    ("allocation", "ending"),
    ("launcher",),
    ("sizing",),
    ("holding",),
    ("cluster",),
)
ROW = {room: number for number, row in enumerate(ROWS) for room in row}

BROKER_MAY_IMPORT = {  # pure, as it is
    "messages", "errors", "defaults", "hearsay", "records", "ledger", "returning",
}  # fmt: skip
BROKER_MAY_NOT_TOUCH = {
    "asyncio", "concurrent", "datetime", "logging", "multiprocessing", "os", "queue", "random", "select",
    "selectors", "signal", "socket", "subprocess", "threading", "time",
}  # fmt: skip
# The wall clock may jump by hours in either direction, which must change nothing.
WALL_CLOCK = {
    "CLOCK_REALTIME", "boot_time", "clock_gettime", "create_time", "datetime.now", "datetime.today",
    "datetime.utcnow", "gmtime", "localtime", "mktime", "st_ctime", "st_mtime", "time.time", "time.time_ns",
}  # fmt: skip
MAY_LOOK_AT_IT = {
    ("cwmp/timelimit.py", "time.time"): "SLURM tells seconds since 1970: compared once, at the start",
    ("cwmp/timelimit.py", "mktime"): "the same, as text",
    (
        "cwmp/slurm/launcher.py",
        "time.time",
    ): "a note of when a cluster was started, to tell it apart",
    ("cwmp/slurm/submission.py", "time.time"): "a note of when workers were submitted, which decides nothing",
    ("cwmp/rendezvous.py", "create_time"): "which process has a pid, where there is no /proc",
}
SLOW_TO_IMPORT = ("psutil", "multiprocessing.managers", "numpy")

MODULE_LINES = 400
FUNCTION_LINES = 60

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


# --- reading the source ---------------------------------------------------------------------


def modules() -> List[Path]:
    """Every Python file of the package."""
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def programs() -> List[Path]:
    """The package, the launchers in bin/ and the examples: what users run and read."""
    launchers = [path for path in (ROOT / "bin").iterdir() if path.is_file()]
    return modules() + sorted(launchers) + sorted((ROOT / "examples").glob("*.py"))


def parsed(path: Path) -> ast.Module:
    """The file as a tree, in the grammar of the oldest Python that we support."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 9))


def name_of(path: Path) -> str:
    """The path as people write it: `cwmp/cli/local.py`."""
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """The room that a file of the package belongs to: `cli` for `cwmp/cli/local.py`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imported_modules(path: Path) -> Iterator[Tuple[int, str]]:
    """Line and dotted name of all that a file imports, inside functions and type checks too.

    `from a import b` gives `a.b`, since b may be a module.
    """
    package = ["cwmp", *path.relative_to(PACKAGE).parts[:-1]] if PACKAGE in path.parents else []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def imported_rooms(path: Path) -> Set[Tuple[int, str]]:
    """Line and room for each import of one of our own rooms; "" is the package's front."""
    found = set()
    for line, module in imported_modules(path):
        parts = module.split(".")
        if parts[0] != "cwmp" or module == "cwmp.__version__":
            continue
        found.add((line, parts[1] if len(parts) > 1 and parts[1] in ROW else ""))
    return found


def rooms_and_files() -> Dict[str, List[Path]]:
    """The files of each room; the package's own `__init__` is none."""
    rooms: Dict[str, List[Path]] = {}
    for path in modules():
        if room_of(path):
            rooms.setdefault(room_of(path), []).append(path)
    return rooms


def everything_below(room: str) -> Set[str]:
    """The rooms that a room imports, those that these import, and so on."""
    files = rooms_and_files()
    seen: Set[str] = set()
    to_visit = [room]
    while to_visit:
        for path in files[to_visit.pop()]:
            new = {name for _, name in imported_rooms(path)} - seen
            seen |= new
            to_visit += [name for name in new if name in files]
    return seen


def public_definitions(tree: ast.Module) -> Iterator[ast.AST]:
    """Functions, classes and methods that a user can see by name."""
    for node in tree.body:
        if isinstance(node, (*Function, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (
                    item
                    for item in node.body
                    if isinstance(item, Function) and not item.name.startswith("_") and not _is_setter(item)
                )


def _is_setter(function: ast.AST) -> bool:
    decorators = getattr(function, "decorator_list", [])
    return any(isinstance(item, ast.Attribute) and item.attr == "setter" for item in decorators)


# --- who imports whom -----------------------------------------------------------------------


def test_every_module_is_in_the_table() -> None:
    assert sorted(rooms_and_files().keys() - ROW.keys()) == [], "give the new room a row in ROWS"


def test_the_table_names_only_modules_that_exist() -> None:
    assert sorted(ROW.keys() - rooms_and_files().keys()) == []


def test_imports_point_downward_only() -> None:
    wrong = []
    for room, paths in rooms_and_files().items():
        for path in paths:
            for line, imported in sorted(imported_rooms(path)):
                inside = room == imported and room in ("cli", "slurm")
                if not inside and ROW.get(imported, len(ROWS)) >= ROW.get(room, -1):
                    wrong.append(f"{name_of(path)}:{line} imports {imported or 'the package itself'}")
    assert wrong == []


def test_imports_inside_slurm_point_downward_only() -> None:
    rows = {module: number for number, row in enumerate(SLURM_ROWS) for module in row}
    paths = [path for path in rooms_and_files()["slurm"] if path.name != "__init__.py"]
    assert sorted(path.stem for path in paths) == sorted(rows), "give the new module a row in SLURM_ROWS"
    wrong = []
    for path in paths:
        for line, module in imported_modules(path):
            parts = module.split(".")
            if parts[:2] == ["cwmp", "slurm"] and rows.get((parts + [""])[2], -1) >= rows[path.stem]:
                wrong.append(f"{name_of(path)}:{line} imports {module}")
    assert wrong == []


def test_broker_imports_only_words_errors_and_constants() -> None:
    path = PACKAGE / "broker.py"
    assert {room for _, room in imported_rooms(path)} <= BROKER_MAY_IMPORT
    assert everything_below("broker") <= BROKER_MAY_IMPORT
    standard = {module.split(".")[0] for _, module in imported_modules(path)}
    assert standard & BROKER_MAY_NOT_TOUCH == set(), "no thread, lock, socket, log or clock in the broker"


def test_slot_never_reaches_transport() -> None:
    assert "transport" not in everything_below("slot")
    program = "import cwmp.slot, sys; print('cwmp.transport' in sys.modules)"
    assert in_fresh_python(program) == "False\n", "importing the package's front counts, too"


def test_nothing_imports_cli_but_the_launchers() -> None:
    importers = {
        name_of(path)
        for path in modules()
        if room_of(path) != "cli" and any(room == "cli" for _, room in imported_rooms(path))
    }
    assert importers <= {"cwmp/__main__.py"}


# --- importing does nothing -----------------------------------------------------------------

IMPORT_ALL = """
import importlib, os, pkgutil, signal, sys, threading
before = {number: signal.getsignal(number) for number in signal.valid_signals()}
directory, environment = os.getcwd(), dict(os.environ)
import cwmp
for module in pkgutil.walk_packages(cwmp.__path__, "cwmp."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert before == {number: signal.getsignal(number) for number in signal.valid_signals()}, "signals"
assert threading.enumerate() == [threading.main_thread()], threading.enumerate()
assert (directory, environment) == (os.getcwd(), dict(os.environ)), "directory or environment"
assert "multiprocessing.resource_tracker" not in sys.modules or (
    sys.modules["multiprocessing.resource_tracker"]._resource_tracker._fd is None), "helper process"
"""


def in_fresh_python(program: str) -> str:
    """What a program prints in an interpreter of its own, with every warning an error."""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.core
def test_the_wall_clock_decides_nothing() -> None:
    found = set()
    for path in modules():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Attribute):
                owner = getattr(node.value, "id", getattr(node.value, "attr", ""))
                names = {node.attr, f"{owner}.{node.attr}"} & WALL_CLOCK
                found |= {(name_of(path), name) for name in names}
        for _, module in imported_modules(path):
            assert module not in ("time.time", "datetime.datetime"), f"{name_of(path)}: say whose it is"
    assert found == MAY_LOOK_AT_IT.keys()


def test_importing_every_module_leaves_the_process_as_it_was() -> None:
    assert in_fresh_python(IMPORT_ALL) == ""


@pytest.mark.core
def test_import_cwmp_loads_nothing_heavy() -> None:
    program = f"import cwmp, sys; print([name for name in {SLOW_TO_IMPORT} if name in sys.modules])"
    assert in_fresh_python(program) == "[]\n"


def test_no_module_calls_anything_for_its_effect_on_import() -> None:
    calls = [
        f"{name_of(path)}:{node.lineno}"
        for path in modules()
        for node in parsed(path).body
        if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
    ]
    assert calls == [], "registering and starting belong in functions"


# --- what every module keeps to -------------------------------------------------------------


def test_every_public_name_has_a_docstring() -> None:
    missing = []
    for path in modules():
        tree = parsed(path)
        if not ast.get_docstring(tree):
            missing.append(name_of(path))
        for node in public_definitions(tree):
            if not ast.get_docstring(node):  # type: ignore[arg-type]
                missing.append(f"{name_of(path)}:{node.lineno} {node.name}")  # type: ignore[attr-defined]
    assert missing == []


def test_modules_and_functions_stay_small() -> None:
    large = []
    for path in programs():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES:
            large.append(f"{name_of(path)}: {lines} lines")
        for node in ast.walk(parsed(path)):
            if isinstance(node, Function) and node.end_lineno - node.lineno >= FUNCTION_LINES:  # type: ignore[operator]
                large.append(f"{name_of(path)}:{node.lineno} {node.name}")
    assert large == []


def test_nothing_is_left_to_do() -> None:
    unfinished = re.compile("TO" + "DO|FIX" + "ME|XX" + "X")
    texts = [*programs(), *(ROOT / "tests").rglob("*.py"), ROOT / "README.md", ROOT / "setup.cfg"]
    assert [name_of(path) for path in texts if unfinished.search(path.read_text(encoding="utf-8"))] == []


def test_every_command_is_installed_in_bin_and_in_the_readme() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = setup["options.entry_points"]["console_scripts"].split("\n")
    scripts = dict(re.split(r"\s*=\s*", line) for line in lines if line)
    launchers = [path.name for path in (ROOT / "bin").iterdir() if path.is_file()]
    assert sorted(launchers) == sorted(scripts)
    for command, target in scripts.items():
        module, _, function = target.partition(":")
        tree = parsed(ROOT / (module.replace(".", "/") + ".py"))
        assert function in {getattr(node, "name", None) for node in tree.body}
        assert f"`{command}" in (ROOT / "README.md").read_text(encoding="utf-8")
