"""Certificates for tests, made with the commands of the README, and who can encrypt here at all."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Dict

import pytest

from cwmp.encryption import Encryption, psk_is_possible

README = Path(__file__).resolve().parents[1] / "README.md"

needs_psk = pytest.mark.skipif(not psk_is_possible(), reason="TLS with the key needs Python 3.13 or newer")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl to make them")


def certificates(directory: Path) -> Dict[str, str]:
    """A CA and a certificate of it in `directory`: the arguments of Encryption."""
    commands = re.findall(r"^ +(openssl .*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 3, "the README tells how"
    directory.mkdir(exist_ok=True)
    for command in commands:
        typed = ["sh", "-e", "-c", command]
        subprocess.run(typed, cwd=directory, check=True, capture_output=True, timeout=60)
    paths = {"cert": "node.pem", "key": "node.key", "ca": "ca.pem"}
    return {name: str(directory / path) for name, path in paths.items()}


def variables(setting: Encryption) -> Dict[str, str]:
    """The environment that makes this setting."""
    paths = {"CWMP_TLS_CERT": setting.cert, "CWMP_TLS_KEY": setting.key, "CWMP_TLS_CA": setting.ca}
    return {"CWMP_ENCRYPT": setting.mode, **{name: path for name, path in paths.items() if path is not None}}
