"""What is refused before anything reaches SLURM, and where defaults come from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Dict

import pytest

from cwmp.errors import UsageError
from cwmp.slurm import options
from cwmp.slurm.options import Options

pytestmark = pytest.mark.core

needs_toml = pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")


@pytest.fixture(autouse=True)
def no_defaults(monkeypatch: pytest.MonkeyPatch, cwmp_home: Path) -> Path:
    """Nothing in the environment, and an empty home."""
    import os

    for name in [name for name in os.environ if name.startswith("CWMP_SLURM_")]:
        monkeypatch.delenv(name)
    cwmp_home.mkdir(mode=0o700)
    return cwmp_home


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"name": "two words"}, "bad cluster name"),
        ({"name": "a\nb"}, "bad cluster name"),
        ({"workers": 0}, "-n 0 is not a whole number from 1 up"),
        ({"workers": True}, "-n True"),
        ({"slots": -1}, "-c -1"),
        ({"slots": "4"}, "-c '4'"),
        ({"layout": "ring"}, "--layout 'ring' is none of array, job"),
        ({"master": "there"}, "--master 'there'"),
        ({"encrypt": "sometimes"}, "--encrypt 'sometimes' is none of auto, always, never"),
        ({"tls_cert": "/c", "tls_key": "/k"}, "belong together: --tls-ca is missing"),
        ({"tls_ca": "ca.pem"}, "--tls-ca 'ca.pem' must be an absolute path"),
        ({"time": "2h"}, "--time '2h' is no time of SLURM's: use minutes, HH:MM:SS, or D-HH:MM:SS"),
        ({"time": "1:2:3:4"}, "--time"),
        ({"time": "1:5"}, "--time"),
        ({"time": "٣"}, "--time"),
        ({"time": 30}, "--time must be a text, not 30"),
        ({"time": ""}, "--time is empty"),
        ({"partition": "two words"}, "--partition 'two words'"),
        ({"partition": "--hold"}, "--partition"),
        ({"account": "a;rm -rf"}, "--account"),
        ({"mem_per_cpu": "4GB"}, "--mem-per-cpu '4GB' is no size of SLURM's"),
        ({"mem_per_cpu": "0"}, "--mem-per-cpu"),
        ({"gpus_per_worker": "0"}, "--gpus-per-worker"),
        ({"gpus_per_worker": "a100:"}, "--gpus-per-worker"),
        ({"setup": ("module load x\nrm -rf",)}, "--setup .* must be one line"),
        ({"setup": ("echo 'open",)}, "--setup .* is no complete line"),
        ({"setup": ("echo on \\",)}, "ends in a backslash"),
        ({"setup": ("",)}, "--setup is empty"),
        ({"wrap": "A=1 env"}, "--wrap 'A=1 env' begins with no command"),
        ({"wrap": "x\0"}, "--wrap"),
        ({"sbatch": ("qos=high",)}, "is no option of sbatch: write it as --sbatch '--constraint=fast'"),
        ({"sbatch": ("--array=1-4",)}, "would break .*: -n N says how many"),
        ({"sbatch": ("--qos=x --arr=1-4",)}, "would break"),
        ({"sbatch": ("-o /tmp/x",)}, "use --log-dir"),
        ({"sbatch": ("-W",)}, "use the --wait of cwmp-slurm"),
        ({"sbatch_master": ("--outp=/tmp/x",)}, "--sbatch-master .* use --log-dir"),
        ({"sbatch": ("--qos=x\n#SBATCH --hold",)}, "one line"),
        ({"log_dir": "relative"}, "--log-dir 'relative' must be an absolute path"),
        ({"log_dir": "/back\\slash"}, "without backslashes"),
        ({"host": "a b"}, "--host"),
        ({"host": "n1", "interface": "ib0"}, "--host and --interface both"),
        ({"wait_s": -1.0}, "--wait -1.0"),
        ({"wait_s": float("nan")}, "--wait nan"),
    ],
)
def test_what_slurm_would_choke_on(given: Dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Options(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"time": "90"},
        {"time": "90:00"},
        {"time": "1-0"},
        {"time": "7-00:00:00"},
        {"time": "UNLIMITED"},
        {"partition": "short,long-2"},
        {"mem_per_cpu": "3800"},
        {"gpus_per_worker": "gtx_1080-ti:2"},
        {"setup": ("if [ -f x ]; then . x; fi", "echo 'it is' \"here\" # a remark: it's")},
        {"wrap": 'apptainer exec --bind "/a b" img.sif'},
        {"sbatch": ("-C skylake", "--export=ALL", "--exclusive", "--wait-all-nodes=1", "--nice")},
        {"log_dir": "/with space/100%"},
    ],
)
def test_what_slurm_takes(given: Dict[str, Any]) -> None:
    Options(**given)


def test_flags_win_over_the_environment_and_that_over_the_file(
    no_defaults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "_from_file", lambda: {"partition": "file", "account": "file", "slots": 2})
    monkeypatch.setenv("CWMP_SLURM_PARTITION", "environment")
    monkeypatch.setenv("CWMP_SLURM_N", "7")
    chosen = options.choose({"slots": 3, "partition": None, "time": None})
    assert (chosen.slots, chosen.partition, chosen.account, chosen.workers) == (3, "environment", "file", 7)
    assert (chosen.time, chosen.name) == (None, "default")


def test_the_name_is_that_of_the_other_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWMP_NAME", "night")
    assert options.choose({}).name == "night"
    assert options.choose({"name": "day"}).name == "day"


def test_a_log_directory_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/ada")
    assert options.choose({"log_dir": "logs"}).log_dir == str(tmp_path / "logs")
    assert options.choose({"log_dir": "~/logs"}).log_dir == "/home/ada/logs"


def test_encryption_is_that_of_all_of_cwmp_unless_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "_from_file", lambda: {"encrypt": "always"})
    assert options.choose({}).encrypt == "always"
    monkeypatch.setenv("CWMP_ENCRYPT", "never")
    assert options.choose({}).encrypt == "never"
    monkeypatch.setenv("CWMP_SLURM_ENCRYPT", "auto")
    for name in ("CERT", "KEY", "CA"):
        monkeypatch.setenv(f"CWMP_TLS_{name}", f"{name}.pem")
    chosen = options.choose({})
    assert (chosen.encrypt, chosen.tls_key) == ("auto", str(tmp_path / "KEY.pem"))
    assert options.choose({"encrypt": "always"}).encryption.way == "cert"


def test_several_lines_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWMP_SLURM_SETUP", "module load x\n\nexport A=1\n")
    monkeypatch.setenv("CWMP_SLURM_WAIT", "2.5")
    chosen = options.choose({})
    assert chosen.setup == ("module load x", "export A=1")
    assert chosen.wait_s == 2.5


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("CWMP_SLURM_N", "many", "CWMP_SLURM_N=many is not a number"),
        ("CWMP_SLURM_TIME", "soon", "in the environment: --time 'soon'"),
        ("CWMP_SLURM_PARTITON", "x", "the environment sets 'partiton', which is no option"),
        ("CWMP_SLURM_NAME", "x", "sets 'name'"),
    ],
)
def test_bad_environment(
    variable: str, value: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=complaint):
        options.choose({})


@needs_toml
def test_the_file(no_defaults: Path) -> None:
    (no_defaults / "slurm.toml").write_text(
        'n = 4\nc = 2\ntime = 30\nmem-per-cpu = "4G"\nwait = 5\nsetup = ["a", "b"]\nsbatch = "--qos=x"\n'
    )
    chosen = options.choose({})
    assert (chosen.workers, chosen.slots, chosen.time, chosen.mem_per_cpu) == (4, 2, "30", "4G")
    assert (chosen.wait_s, chosen.setup, chosen.sbatch) == (5, ("a", "b"), ("--qos=x",))


@needs_toml
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("partition = ", "slurm.toml is not TOML: "),
        ("partition = 'x y'", "in slurm.toml: --partition 'x y'"),
        ("nodes = 3", "slurm.toml sets 'nodes', which is no option of cwmp-slurm: use account, c"),
        ("time = 02:00:00", "time in .*slurm.toml must be a text in quotes, not 02:00:00"),
        ("n = '4'", "n in .* must be a number"),
        ("setup = [1]", "setup in .* must be a text, or a list of texts"),
        ("[short]\npartition = 'x'", "sets 'short'"),
        ("partition = ''", "--partition is empty"),
    ],
)
def test_a_bad_file(no_defaults: Path, text: str, complaint: str) -> None:
    (no_defaults / "slurm.toml").write_text(text)
    with pytest.raises(UsageError, match=complaint):
        options.choose({})


def test_a_python_without_tomllib_says_what_to_do(
    no_defaults: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert options.choose({}) == Options(), "no file, no complaint"
    (no_defaults / "slurm.toml").write_text("n = 4\n")
    monkeypatch.setitem(sys.modules, "tomllib", None)
    with pytest.raises(UsageError, match="cannot be read by this Python, .* set CWMP_SLURM_PARTITION"):
        options.choose({})
