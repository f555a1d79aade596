"""Which addresses of a machine are published, and where `--interface` binds."""

from __future__ import annotations

import pytest

from cwmp import addresses
from cwmp.errors import UsageError

pytestmark = pytest.mark.core

FOUND = {
    "lo": ["127.0.0.1", "::1"],
    "ib0": ["2001:db8::9", "fe80::9%ib0"],
    "eth0": ["10.0.0.7", "10.0.0.8", "fe80::1%eth0", "2001:db8::7"],
    "eth1": ["169.254.3.4"],
    "docker0": ["172.17.0.1"],
    "down": [],
}


def test_what_other_machines_cannot_use_is_left_out() -> None:
    for bound in ("", "0.0.0.0"):
        assert addresses.reachable(bound, FOUND) == ("10.0.0.7", "10.0.0.8", "172.17.0.1")


def test_who_listens_on_both_protocols_is_reached_by_both() -> None:
    assert addresses.reachable("::", FOUND) == (
        "10.0.0.7",
        "10.0.0.8",
        "172.17.0.1",
        "2001:db8::9",
        "2001:db8::7",
    )


def test_the_address_of_an_interface() -> None:
    assert addresses.address_of("eth0", FOUND) == "10.0.0.7"
    assert addresses.address_of("ib0", FOUND) == "2001:db8::9"


@pytest.mark.parametrize("name", ["down", "wlan0"])
def test_an_interface_without_an_address_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(UsageError, match=rf"no interface '{name}' .*lo \(127.0.0.1\), ib0 \(2001:db8::9\)"):
        addresses.address_of(name, FOUND)


def test_this_machine_has_a_loopback_interface() -> None:
    assert any("127.0.0.1" in listed for listed in addresses.interfaces().values())
