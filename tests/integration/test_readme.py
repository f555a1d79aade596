"""What the README shows works: its programs, its command lines, its links, its tables.

Every block marked `python` is a whole program. What it prints stands behind each `print` as a comment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple

import pytest

import cwmp

pytestmark = pytest.mark.core

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CLI = {path.name: path.name[len("cwmp-") :] for path in (ROOT / "bin").glob("cwmp-*")}
IN_EVERY_ENVIRONMENT = {"python", "pip", *CLI}


class Block(NamedTuple):
    """One fenced block: the comment that marks it, if any, its language, and its text."""

    mark: str
    language: str
    text: str


def blocks(language: str) -> List[Block]:
    """The README's fenced blocks of one language."""
    fenced = re.compile(r"^(?:<!-- (.*?) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [Block(*match.groups(default="")) for match in fenced.finditer(README)]
    return [block for block in found if block.language == language]


def command_lines() -> List[str]:
    """Every line of every shell block, without comments and without settings in front."""
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.text.splitlines()]
    return [re.sub(r"^(\w+=\S+ )+", "", line) for line in lines if line]


def run(command: List[str], home: Path) -> str:
    """What a command prints, with nothing of the caller's own cluster in sight."""
    environment: Dict[str, str] = {key: val for key, val in os.environ.items() if not key.startswith("CWMP_")}
    environment.update(CWMP_HOME=str(home), PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1")
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run(command, env=environment, cwd=home, text=True, timeout=60, **streams)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture()
def home(tmp_path: Path) -> Path:
    """A CWMP_HOME of the test's own."""
    tmp_path.chmod(0o700)
    return tmp_path


def first_import(program: str) -> str:
    """What a program is about: the name that it imports first."""
    return re.findall(r"import (\w+)", program)[0]


@pytest.mark.parametrize("program", [block.text for block in blocks("python")], ids=first_import)
def test_program_prints_what_it_says(program: str, home: Path) -> None:
    expected = re.findall(r"^\s*print\(.*\)  # (.*)$", program, re.MULTILINE)
    script = home / "example.py"
    script.write_text(program, encoding="utf-8")
    printed = run([sys.executable, "-m", "cwmp", "local", "-n", "2", "run", str(script)], home)
    assert expected, "each program shows something"
    assert [line for line in printed.splitlines() if line in expected] == expected


def test_there_is_a_program_for_each_interface() -> None:
    programs = [block.text for block in blocks("python")]
    for name in ("ClusterExecutor", "ClientThread", "LocalCluster"):
        assert any(f"import {name}" in program for program in programs)


@pytest.mark.parametrize("mark", ["set-up: census", "set-up: tests"])
def test_set_up_commands_are_one_line_each(mark: str) -> None:
    [block] = [block for block in blocks("sh") if block.mark == mark]
    assert len(block.text.splitlines()) == 1
    assert subprocess.run(["bash", "-n", "-c", block.text], timeout=10).returncode == 0


@pytest.mark.parametrize("line", command_lines())
def test_command_line_starts_with_a_command_that_exists(line: str) -> None:
    command = line.split()[0]
    environment, _, name = command.rpartition("/")
    if environment == ".venv/bin":
        assert name in IN_EVERY_ENVIRONMENT
    else:
        assert command in IN_EVERY_ENVIRONMENT or shutil.which(command)


def test_a_script_beside_a_checkout_imports_what_is_installed(tmp_path: Path) -> None:
    """The checkout is a folder called cwmp, too: an empty package to Python, if it finds nothing else."""
    (tmp_path / "cwmp").symlink_to(ROOT)
    script = tmp_path / "script.py"
    script.write_text("import cwmp; print(cwmp.__version__)")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True)
    assert done.stdout == f"{cwmp.__version__}\n"


@pytest.mark.parametrize("command", sorted(CLI))
def test_options_shown_are_options_that_the_command_has(command: str, home: Path) -> None:
    shown = command_lines() + re.findall(r"`(cwmp-[^`]*)`", README)
    uses = [line for line in shown if line.split()[0] == command]
    options = {option for line in uses for option in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", line)}
    help_text = run([sys.executable, "-m", "cwmp", CLI[command], "--help"], home)
    assert uses, "the README shows each command"
    assert sorted(option for option in options if option not in help_text) == []


def test_files_that_it_names_exist() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    targets += re.findall(r"`((?:cwmp|bin|examples|tests|\.ci)/[\w./]*)`", README)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_layout_lists_every_module() -> None:
    layout = README[README.index("| room |") :]
    rooms = {path.name for path in (ROOT / "cwmp").glob("[a-z]*.py")}
    assert sorted(name for name in rooms if f"`cwmp/{name}`" not in layout) == []
