"""The rule of which connections are encrypted, and what is said where that is not possible."""

from __future__ import annotations

import json
import logging
import socket
import sys
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest

from cwmp import encryption, entrance
from cwmp.dial import reach
from cwmp.encryption import Encryption, choose, is_loopback
from cwmp.entrance import Entrance
from cwmp.errors import ConnectError, UsageError, WrongKey
from cwmp.rendezvous import Cluster, Destination, find, publish
from cwmp.transport import connect

pytestmark = pytest.mark.core

FILES: Dict[str, Any] = {"cert": "/c.pem", "key": "/c.key", "ca": "/ca.pem"}
WAYS_OUT = r"Python 3\.13 or newer.*--tls-cert.*CWMP_ENCRYPT=never"


@pytest.fixture
def no_psk(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older Python."""
    monkeypatch.setattr(encryption, "psk_is_possible", lambda: False)


@pytest.fixture
def psk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer one."""
    monkeypatch.setattr(encryption, "psk_is_possible", lambda: True)


ADDRESSES = {"127.0.0.1": True, "127.255.0.9": True, "::1": True, "::ffff:127.0.0.1": True, "10.0.0.7": False,
             "128.0.0.1": False, "::2": False, "fe80::1%eth0": False, "::ffff:10.0.0.7": False}  # fmt: skip


@pytest.mark.parametrize(("address", "loopback"), ADDRESSES.items())
def test_what_leaves_the_machine_is_encrypted(address: str, loopback: bool) -> None:
    assert is_loopback(address) == loopback
    assert Encryption().covers(address) == (not loopback)
    assert Encryption("always").covers(address)
    assert not Encryption("never").covers(address)


def test_what_there_is_to_encrypt_with(monkeypatch: pytest.MonkeyPatch, psk: None) -> None:
    assert (Encryption().way, Encryption("always").way, Encryption("never").way) == ("psk", "psk", "clear")
    assert Encryption(**FILES).way == "cert"
    monkeypatch.setattr(encryption, "psk_is_possible", lambda: False)
    assert (Encryption().way, Encryption(**FILES).way) == ("local", "cert")


def test_older_pythons_have_no_key_for_tls() -> None:
    if sys.version_info < (3, 13):
        assert not encryption.psk_is_possible()
    else:
        import ssl

        assert encryption.psk_is_possible() == ssl.HAS_PSK


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"mode": "sometimes"}, "'sometimes' is none of auto, always, never"),
        ({"cert": "/c", "ca": "/a"}, "belong together: --tls-key is missing"),
        ({"key": "/k"}, "--tls-cert and --tls-ca is missing"),
    ],
)
def test_half_a_setting(given: Dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        Encryption(**given)


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choose() == Encryption("auto")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CWMP_ENCRYPT", "never")
    for name in ("CERT", "KEY", "CA"):
        monkeypatch.setenv(f"CWMP_TLS_{name}", name)
    assert choose() == Encryption("never", *(str(tmp_path / name) for name in ("CERT", "KEY", "CA")))
    chosen = choose("always", key="/k")
    assert (chosen.mode, chosen.cert, chosen.key) == ("always", str(tmp_path / "CERT"), "/k")


# --- what a published master does is done, too -----------------------------------------------


@pytest.mark.parametrize(
    ("ours", "published", "followed"),
    [
        (Encryption(), ("auto", "psk"), Encryption()),
        (Encryption(), ("always", "psk"), Encryption("always")),
        (Encryption(), ("never", "clear"), Encryption("never")),
        (Encryption("never"), ("auto", "psk"), Encryption()),
        (Encryption("never", **FILES), ("always", "cert"), Encryption("always", **FILES)),
        (Encryption(**FILES), ("auto", "psk"), Encryption()),
    ],
)
def test_following(ours: Encryption, published: Tuple[str, str], followed: Encryption) -> None:
    assert ours.following(*published) == followed


def test_who_is_to_encrypt_everything_does_not_follow_one_who_encrypts_nothing() -> None:
    with pytest.raises(UsageError, match="the master encrypts nothing: start it with --encrypt always"):
        Encryption("always").following("never", "clear")


def test_programs_follow_what_is_published(cwmp_home: Path, psk: None) -> None:
    cluster = Cluster.of_this_process("default", "127.0.0.1", 4711, b"k", encrypt=Encryption("always"))
    publish(cluster)
    assert find().encryption == Encryption("always")
    assert find("127.0.0.1:4711", authkey="k").encryption == Encryption("always"), "by its address, too"
    assert find("127.0.0.1:4712", authkey="k").encryption == Encryption("auto")
    publish(Cluster.of_this_process("old", "", 4712, b"k", encrypt=Encryption("never")))
    assert find(name="old").encryption == Encryption("never")


def test_a_master_of_before_encrypts_nothing(cwmp_home: Path) -> None:
    publish(Cluster.of_this_process("default", "127.0.0.1", 4711, b"k"))
    file = cwmp_home / "clusters" / "default.json"
    record = json.loads(file.read_text())
    del record["encrypt"], record["encryption"]
    file.write_text(json.dumps(record))
    assert find().encryption == Encryption("never")


def test_an_address_is_enough_without_a_home(cwmp_home: Path) -> None:
    assert find("node7:6000", authkey="k") == Destination(("node7",), 6000, b"k")
    assert not cwmp_home.exists()


# --- where nothing can be encrypted ----------------------------------------------------------


def test_every_way_out_is_named(no_psk: None) -> None:
    for setting in (Encryption(), Encryption("always")):
        with pytest.raises(UsageError, match=WAYS_OUT):
            setting.require("it")
    Encryption("never").require("it")
    Encryption(**FILES).require("it")


def test_a_master_for_other_machines_says_what_it_does_not_do(no_psk: None) -> None:
    assert Encryption().caution("127.0.0.1") is None
    assert "from this machine only" in (Encryption().caution("0.0.0.0") or "")
    assert "are not encrypted" in (Encryption("never").caution("10.0.0.7") or "")
    assert Encryption(**FILES).caution("0.0.0.0") is None


def test_a_master_that_is_to_encrypt_everything_does_not_start(no_psk: None) -> None:
    with pytest.raises(UsageError, match=WAYS_OUT):
        Entrance("127.0.0.1", b"k", Encryption("always"))


def test_others_are_turned_away_before_a_word(
    no_psk: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With one line for a crowd."""
    door = Entrance("0.0.0.0", b"k", Encryption())
    for _ in range(3):
        ours, theirs = socket.socketpair()
        with theirs:
            assert door.admit(ours, "10.0.0.7") is None
            assert theirs.recv(1) == b""
    assert [record.getMessage() for record in caplog.records] == [
        "10.0.0.7 was turned away: connections are taken from this machine only"
    ]
    monkeypatch.setattr(entrance, "_TELL_S", 0.0)
    ours, theirs = socket.socketpair()
    with theirs:
        door.admit(ours, "10.0.0.8")
        assert len(caplog.records) == 2
        ours, other = socket.socketpair()
        with other:
            wire = door.admit(ours, "127.0.0.1")
            assert wire is not None and not wire.encrypted
            wire.close()


class Elsewhere:
    """A socket whose other end claims to be on another machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        monkeypatch.setattr(encryption, "is_loopback", lambda address: False)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Any:
    elsewhere = Elsewhere(monkeypatch)
    with elsewhere.listening:
        yield elsewhere


def test_a_connection_to_another_machine_is_refused(elsewhere: Elsewhere, no_psk: None) -> None:
    with pytest.raises(UsageError, match=f"the connection to 127.0.0.1:{elsewhere.port} .*{WAYS_OUT}"):
        connect("127.0.0.1", elsewhere.port, b"k", timeout_s=5)


def test_of_several_addresses_none_is_tried_for_long(elsewhere: Elsewhere, no_psk: None) -> None:
    where = Destination(("127.0.0.1", "127.0.0.2"), elsewhere.port, b"k", "x", "nonce")
    with pytest.raises(UsageError, match=WAYS_OUT):
        reach(where, timeout_s=5)


def test_one_in_clear_is_warned_of_once(
    elsewhere: Elsewhere, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "cwmp")
    for _ in range(2):
        with pytest.raises((ConnectError, WrongKey)):
            connect("127.0.0.1", elsewhere.port, b"k", Encryption("never"), timeout_s=0.1)
    place = f"127.0.0.1:{elsewhere.port}"
    assert [record.getMessage() for record in caplog.records] == [
        f"what goes to and from {place} is not encrypted, as CWMP_ENCRYPT=never demands"
    ]
