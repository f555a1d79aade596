"""The commands without any process: arguments, one-line errors, exit statuses, tables."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Callable, List, Tuple

import pytest

import cwmp
from cwmp import cli
from cwmp.cli import common, local, master, status, worker
from cwmp.errors import ConnectError, UsageError

MAINS = {
    "cwmp-master": master.main,
    "cwmp-worker": worker.main,
    "cwmp-status": status.main,
    "cwmp-local": local.main,
}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CWMP_HOME of the test's own, and no other setting from outside."""
    for name in ("CWMP_MASTER", "CWMP_NAME", "CWMP_AUTHKEY", "CWMP_AUTHKEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CWMP_HOME", str(tmp_path / "cwmp"))


def outcome(main: Callable[[List[str]], int], arguments: List[str]) -> int:
    """The exit status, whether it is returned or raised."""
    try:
        return main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize(
    ("command", "arguments", "reason"),
    [
        ("cwmp-master", ["--port", "x"], "bad port 'x'"),
        ("cwmp-master", ["--port", "65536"], "bad port '65536'"),
        ("cwmp-master", ["--port", "-1"], "bad port '-1'"),
        ("cwmp-master", ["--port"], "expected one argument"),
        ("cwmp-master", ["--name", "a/b"], "bad cluster name 'a/b'"),
        ("cwmp-master", ["--authkey", ""], "the key is empty"),
        ("cwmp-master", ["--authkey", "a", "--authkey-file", "b"], "not allowed with"),
        ("cwmp-master", ["--authkey-file", "/none"], "cannot read key file /none"),
        ("cwmp-master", ["--ready-fd", "999"], "not an open descriptor"),
        ("cwmp-master", ["--unknown"], "unrecognized arguments: --unknown"),
        ("cwmp-master", ["--na", "x"], "unrecognized arguments: --na"),
        ("cwmp-master", ["surplus"], "unrecognized arguments: surplus"),
        ("cwmp-worker", ["node:port"], "bad port 'port' in 'node:port'"),
        ("cwmp-worker", [""], "bad address ''"),
        ("cwmp-worker", ["--procs", "0"], "'0' is not a whole number from 1 up"),
        ("cwmp-worker", ["--procs", "2.5"], "'2.5' is not a whole number"),
        ("cwmp-worker", ["--wait", "long"], "'long' is not a number of seconds"),
        ("cwmp-worker", ["--wait", "nan"], "'nan' is not a number of seconds"),
        ("cwmp-worker", ["--grace", "-1"], "not a number of seconds"),
        ("cwmp-worker", ["node", "--authkey-file", "/none"], "cannot read key file /none"),
        ("cwmp-status", ["a:b:c"], "bad address 'a:b:c'"),
        ("cwmp-status", ["--unknown"], "unrecognized arguments"),
        ("cwmp-local", ["-n", "0"], "'0' is not a whole number from 1 up"),
        ("cwmp-local", ["-n", "two", "run", "x"], "'two' is not a whole number"),
        ("cwmp-local", ["begin"], "invalid choice: 'begin'"),
        ("cwmp-local", ["start", "stop"], "unrecognized arguments: stop"),
        ("cwmp-local", ["run"], "run what?"),
        ("cwmp-local", ["run", "missing.py"], "no such script: missing.py"),
        ("cwmp-local", ["run", "no-such-command"], "no such command or script: no-such-command"),
        ("cwmp-local", ["--name", "-x", "stop"], "expected one argument"),
    ],
)
def test_bad_arguments_are_told_in_one_line(
    command: str, arguments: List[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(MAINS[command], arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{command}: ")
    assert reason in err
    assert err.count("\n") == 1


def test_a_loose_key_file_is_refused_with_what_to_type(
    tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key"
    path.write_text("secret")
    path.chmod(0o644)
    assert outcome(master.main, ["--authkey-file", str(path)]) == 2
    assert capsys.readouterr().err == f"cwmp-master: key file {path} is open to others: chmod 600 {path}\n"


@pytest.mark.parametrize("command", MAINS)
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(MAINS[command], ["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {command} ")
    assert "examples:\n" in text
    assert "Exit status" in text


def test_help_warns_of_a_key_in_the_process_list(capsys: pytest.CaptureFixture[str]) -> None:
    outcome(worker.main, ["--help"])
    assert "`ps`" in capsys.readouterr().out


@pytest.mark.parametrize("command", MAINS)
def test_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(MAINS[command], ["--version"]) == 0
    assert capsys.readouterr().out == f"{command} {cwmp.__version__}\n"


# --- python -m cwmp -------------------------------------------------------------------------


def test_module_hands_over_to_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(cli.main, ["master", "--port", "x"]) == 2
    assert capsys.readouterr().err.startswith("cwmp-master: ")


def test_module_without_command_shows_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert all(f"  {command}" in text for command in cli.COMMANDS)


def test_module_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cwmp {cwmp.__version__}\n"


def test_module_with_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["slave"]) == 2
    known = "master, worker, status, local, slurm"
    assert capsys.readouterr().err == f"cwmp: no command 'slave': use one of {known}\n"


# --- failures and the ready line ------------------------------------------------------------


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def command(_args: argparse.Namespace) -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "exit_status", "line"),
    [
        (UsageError("no\n  good"), 2, "cwmp-x: no good\n"),
        (ConnectError("nobody there"), 1, "cwmp-x: nobody there\n"),
        (OSError(28, "No space left on device"), 1, "cwmp-x: No space left on device\n"),
        (OSError(28, "No space left on device", "/f"), 1, "cwmp-x: /f: No space left on device\n"),
        (KeyboardInterrupt(), 130, "cwmp-x: interrupted\n"),
    ],
)
def test_failures_are_one_line(
    error: BaseException, exit_status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert common.run(common.Parser("cwmp-x"), raising(error), []) == exit_status
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("prefix", "advice"),
    [
        ("/env", "/env/bin/python -m pip install cloudpickle psutil"),
        (
            "/usr",
            "/env/bin/python -m venv env && env/bin/pip install cloudpickle psutil, then use env/bin/python",
        ),
    ],
)
def test_a_missing_dependency_tells_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prefix: str, advice: str
) -> None:
    monkeypatch.setattr(common, "NEEDED", ("cloudpickle", "no_such_module"))
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    monkeypatch.setattr(sys, "prefix", prefix)
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    assert common.run(common.Parser("cwmp-x"), raising(AssertionError()), []) == 1
    advice = advice.replace("psutil", "no_such_module")
    assert capsys.readouterr().err == f"cwmp-x: /env/bin/python lacks no_such_module: {advice}\n"


def test_an_error_of_our_own_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        common.run(common.Parser("cwmp-x"), raising(ZeroDivisionError()), [])


def launched_parser() -> common.Parser:
    parser = common.Parser("cwmp-x")
    common.add_launcher_options(parser)
    return parser


def read_all(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def test_the_ready_line_goes_to_its_descriptor_and_later_ones_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command(args: argparse.Namespace) -> int:
        common.announce(args, "ready")
        raise ConnectError("lost")

    reading, writing = os.pipe()
    assert common.run(launched_parser(), command, ["--ready-fd", str(writing)]) == 1
    assert read_all(reading) == b"ready\n"
    assert capsys.readouterr() == ("", "cwmp-x: lost\n")


def test_why_it_is_not_ready_goes_to_that_descriptor(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    arguments = ["--ready-fd", str(writing)]
    assert common.run(launched_parser(), raising(ConnectError("nobody there")), arguments) == 1
    assert read_all(reading) == b"cwmp-x: nobody there\n"
    assert capsys.readouterr() == ("", "")


def test_a_launcher_that_left_does_not_hide_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    common.run(launched_parser(), raising(ConnectError("nobody there")), ["--ready-fd", str(writing)])
    os.close(writing)
    assert capsys.readouterr().err == "cwmp-x: nobody there\n"


def test_a_leash_must_be_something_that_can_end() -> None:
    keep = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        with pytest.raises(UsageError, match="needs a pipe"):
            common.leash_fd(argparse.Namespace(leash=True))
    finally:
        os.dup2(keep, 0)
        os.close(keep)
    assert common.leash_fd(argparse.Namespace(leash=False)) is None


# --- cwmp-local's arguments -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "split"),
    [
        ([], ([], [])),
        (["-n", "2"], (["-n", "2"], [])),
        (["stop", "--name", "run"], (["stop", "--name", "run"], [])),
        (["--name", "run", "start"], (["--name", "run", "start"], [])),
        (["run", "job.py"], (["run"], ["job.py"])),
        (["-n", "2", "run", "job.py", "-n", "7"], (["-n", "2", "run"], ["job.py", "-n", "7"])),
        (["run", "-n", "2", "job.py", "stop"], (["run", "-n", "2"], ["job.py", "stop"])),
        (["run", "-n2", "--name=x", "job.py"], (["run", "-n2", "--name=x"], ["job.py"])),
        (["run", "--", "-odd", "x"], (["run"], ["-odd", "x"])),
        (["run", "sh", "--", "x"], (["run"], ["sh", "--", "x"])),
        (["run", "--help"], (["run", "--help"], [])),
    ],
)
def test_what_is_for_the_program(argv: List[str], split: Tuple[List[str], List[str]]) -> None:
    assert common.split_program(argv, ["-n", "--name"]) == split


# --- cwmp-status ----------------------------------------------------------------------------

STATUS = {
    "name": "night",
    "host": "0.0.0.0",
    "port": 5494,
    "pid": 77,
    "uptime_s": 12.04,
    "encryption": {"mode": "auto", "way": "psk"},
    "version": "1.2",
    "python": "3.11",
    "protocol": 1,
    "jobs": {"queued": 3, "running": 2, "done": 10, "failed": 1, "cancelled": 0},
    "workers": [
        {
            "id": 1,
            "node": "node7",
            "pid": 5,
            "slots": 4,
            "busy": 2,
            "done": 10,
            "rss_bytes": 3 << 30,
            "silent_s": 0.4,
            "slurm_job": None,
            "ends_in_s": None,
            "draining": False,
        },
        {
            "id": 12,
            "node": "n",
            "pid": 32000,
            "slots": 4,
            "busy": 0,
            "done": 0,
            "rss_bytes": 0,
            "silent_s": 1.0,
            "slurm_job": None,
            "ends_in_s": None,
            "draining": False,
        },
    ],
    "clients": [{"id": 3, "node": "login", "pid": 9, "queued": 3, "running": 2}],
}

REPORT = """\
cluster  night on 0.0.0.0:5494, pid 77, up 12.0 s, cwmp 1.2, Python 3.11
network  what leaves the machine is encrypted (TLS 1.3 with the cluster's key)
jobs     3 queued, 2 running, 10 done, 1 failed, 0 cancelled
workers  2 with 8 slots, 2 busy
  id  node     pid  slots  busy  done   memory      heard
   1  node7      5      4     2    10  3.0 GiB  0.4 s ago
  12  n      32000      4     0     0    0 MiB  1.0 s ago
clients  1
  id  node   pid  queued  running
   3  login    9       3        2"""


def test_report() -> None:
    assert status.report(STATUS) == REPORT


def test_report_of_workers_in_slurm_jobs() -> None:
    first, second = STATUS["workers"]
    workers = [{**first, "slurm_job": "123_4", "ends_in_s": 7400.0, "draining": True}, second]
    lines = status.report({**STATUS, "workers": workers}).splitlines()
    assert lines[4:7] == [
        "  id  node     pid  slots  busy  done   memory  SLURM job  time left      heard     leaves",
        "   1  node7      5      4     2    10  3.0 GiB      123_4  2:03:20 h  0.4 s ago  when done",
        "  12  n      32000      4     0     0    0 MiB          -          -  1.0 s ago          -",
    ]


def test_report_of_an_empty_cluster() -> None:
    lines = status.report({**STATUS, "workers": [], "clients": []}).splitlines()
    assert lines[3:] == ["workers  0 with 0 slots, 0 busy", "clients  0"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (200, "3:20 min"),
        (7400, "2:03:20 h"),
        (3 * 86400 + 7400, "3 d 2:03:20 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert status.duration(seconds) == text


def test_status_of_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(status.main, ["127.0.0.1:1"]) == 1
    assert "cannot connect to a master at 127.0.0.1:1" in capsys.readouterr().err
