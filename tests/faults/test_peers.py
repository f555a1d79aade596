"""What a master does with peers of another version, with another key, or out of their mind."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from typing import Any, Callable, Dict, Iterator, List

import pytest

from cwmp import CwmpError, LocalCluster, VersionMismatch, WrongKey
from cwmp.messages import JOB_QUEUE, PROTOCOL, RESULT_QUEUE, python_minor, this_side
from cwmp.rendezvous import parse_address
from cwmp.transport import Wire, connect, introduce
from tests.faults import jobs
from tests.faults import processes as see
from tests.waiting import wait_until

pytestmark = pytest.mark.core

WAIT_S = 30.0
WORKER = {"slots": 1, "busy": 0, "done": 0, "rss_bytes": 0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(1) as cluster:
        wait_until(lambda: see.slots_of(cluster.pids["workers"][0]), timeout_s=WAIT_S)
        yield cluster
        see.wait_for_clients(cluster, 0)


@pytest.fixture(autouse=True)
def unharmed(cluster: LocalCluster) -> Iterator[None]:
    """After each test the same master and worker work, and nobody else is there; some may come back."""
    before = see.family(cluster)
    yield
    wait_until(lambda: len(see.status(cluster)["workers"]) == 1, timeout_s=WAIT_S)
    wait_until(lambda: all(client["away"] for client in see.status(cluster)["clients"]), timeout_s=WAIT_S)
    with cluster.executor() as executor:
        assert list(executor.map(jobs.add, range(20))) == list(range(1, 21))
    assert see.family(cluster) == before


@pytest.fixture
def wires(cluster: LocalCluster) -> Iterator[Callable[[], Wire]]:
    """Makes connections, and closes them all at the end."""
    made: List[Wire] = []

    def make() -> Wire:
        made.append(see.open_wire(cluster))
        return made[-1]

    yield make
    for wire in made:
        wire.close()


# --- versions and keys ----------------------------------------------------------------------


@pytest.mark.parametrize("role", ["client", "worker"])
def test_another_python_is_refused_with_both_named(wires: Callable[[], Wire], role: str) -> None:
    hello = {**this_side(role, **WORKER), "python": "3.1"}
    with pytest.raises(VersionMismatch) as caught:
        introduce(wires(), hello)
    for part in (f"this {role} runs Python 3.1 ", f"cluster runs Python {python_minor()}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("role", ["client", "worker"])
@pytest.mark.parametrize("protocol", [0, PROTOCOL + 1, None, "one"])
def test_another_protocol_is_refused_with_both_named(
    wires: Callable[[], Wire], role: str, protocol: Any
) -> None:
    hello = {**this_side(role, **WORKER), "protocol": protocol, "python": "3.1"}
    with pytest.raises(VersionMismatch) as caught:
        introduce(wires(), hello)
    for part in (f"this {role} speaks cwmp protocol {protocol} ", f"cluster speaks {PROTOCOL}"):
        assert part in str(caught.value)


OTHER_WORKER = """
import platform, sys
from cwmp import messages
from cwmp.agent import Agent
from cwmp.rendezvous import Destination

setattr(messages, sys.argv[3], eval(sys.argv[4]))
where = Destination((sys.argv[1],), int(sys.argv[2]), b"KEY")
try:
    Agent(lambda: where, slots=1).run()
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("PROTOCOL", "99", f"worker speaks cwmp protocol 99 and the cluster speaks {PROTOCOL}"),
        (
            "python_minor",
            "lambda: '3.1'",
            f"worker runs Python 3.1 and the cluster runs Python {python_minor()}",
        ),
    ],
)
def test_a_worker_of_another_version_ends_with_the_sentence(
    cluster: LocalCluster, name: str, value: str, sentence: str
) -> None:
    host, port = parse_address(cluster.address)
    code = OTHER_WORKER.replace("KEY", cluster.authkey.decode())
    ended = subprocess.run(
        [sys.executable, "-c", code, host, str(port), name, value],
        cwd=see.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stdout.startswith("VersionMismatch ")
    assert sentence in ended.stdout


def test_another_key(cluster: LocalCluster) -> None:
    host, port = parse_address(cluster.address)
    assert port is not None
    for _ in range(20):
        with pytest.raises(WrongKey, match=cluster.address):
            connect(host, port, b"another key")


# --- peers that have the key, and lost their mind -------------------------------------------


def join(wire: Wire, role: str, **facts: Any) -> int:
    ident: int = introduce(wire, this_side(role, **{**(WORKER if role == "worker" else {}), **facts}))[
        "member"
    ]
    return ident


def ask_anyway(wire: Wire, target: Any, method: Any, *args: Any) -> None:
    """A call that may be refused, ended by the other side, or get no answer."""
    try:
        wire.deadline(0.2)
        wire.call(target, method, *args)
    except (CwmpError, EOFError, OSError):
        pass


BAD_VALUES: List[Any] = ["x", None, -1, 1 << 80, [], {}, (), 1.5, b"x", float("nan"), [[]], [1], [(1,)]]


@pytest.mark.parametrize("method", ["put", "cancel"])
@pytest.mark.parametrize("value", BAD_VALUES, ids=repr)
def test_client_calls_with_bad_values(wires: Callable[[], Wire], method: str, value: Any) -> None:
    wire = wires()
    client = join(wire, "client")
    ask_anyway(wire, JOB_QUEUE, method, client, value)
    ask_anyway(wires(), JOB_QUEUE, method, value, value)
    ask_anyway(wires(), JOB_QUEUE, method, *[value] * 5)


@pytest.mark.parametrize(
    "job", [(1, b"f", 5), (1, 5, b"x"), ([], b"f", b"x"), ("1", b"f", b"x"), (1, None, None)]
)
def test_jobs_of_the_wrong_types(wires: Callable[[], Wire], job: Any) -> None:
    wire = wires()
    client = join(wire, "client")
    ask_anyway(wire, JOB_QUEUE, "put", client, [job])
    ask_anyway(wire, RESULT_QUEUE, "collect", client, 0)


@pytest.mark.parametrize("value", BAD_VALUES, ids=repr)
def test_collect_with_bad_values(wires: Callable[[], Wire], value: Any) -> None:
    wire = wires()
    ask_anyway(wire, RESULT_QUEUE, "collect", join(wire, "client"), value)
    ask_anyway(wires(), RESULT_QUEUE, "collect", value, 0)


@pytest.mark.parametrize("value", BAD_VALUES, ids=repr)
def test_take_with_bad_values(wires: Callable[[], Wire], value: Any) -> None:
    wire, client_wire = wires(), wires()
    ask_anyway(wire, JOB_QUEUE, "take", join(wire, "worker"), value)
    client = join(client_wire, "client")
    client_wire.call(JOB_QUEUE, "put", client, [(1, b"f", b"x")])
    ask_anyway(wires(), JOB_QUEUE, "take", value, 1)


REPORTS: List[Dict[str, Any]] = [
    {"outcomes": value} for value in (5, [5], [(1,)], [(1, 0, b"")], [([], 0, b"")])
] + [
    {"running": [[]]},
    {"running": 5},
    {"died": [(1,)]},
    {"died": [(1, 5)]},
    {"returned": [[]]},
    {"returned": 5},
    {"facts": 5},
    {"limit": "x"},
    {"limit": None},
    {"facts": {"slots": "x"}},
    {"facts": {"heard": 1, "pid": [], "node": 5}},
]


@pytest.mark.parametrize("report", [*REPORTS, 5, None, []], ids=repr)
def test_reports_out_of_the_blue(wires: Callable[[], Wire], report: Any) -> None:
    wire = wires()
    ask_anyway(wire, RESULT_QUEUE, "report", join(wire, "worker"), report)


@pytest.mark.parametrize("outcome", [(0, 7), (0, None), (99, b""), ("x", b""), (2, 5), (2, [{}]), (3, None)])
def test_an_outcome_that_makes_no_sense_is_that_jobs_only(
    cluster: LocalCluster, wires: Callable[[], Wire], outcome: Any
) -> None:
    """A worker of ours that reports nonsense for a job that it was given."""
    client_wire, collect_wire, worker_wire = wires(), wires(), wires()
    client = join(client_wire, "client")
    introduce(collect_wire, this_side("client", member=client))
    worker = join(worker_wire, "worker")
    worker_wire.request(JOB_QUEUE, "take", worker, 1000)
    client_wire.call(JOB_QUEUE, "put", client, [(n, b"f", b"x") for n in range(1000)])
    leases = worker_wire.reply()
    assert leases
    collect_wire.request(RESULT_QUEUE, "collect", client, 0)
    ask_anyway(worker_wire, RESULT_QUEUE, "report", worker, {"outcomes": [(leases[0][0], *outcome)]})


@pytest.mark.parametrize(
    "hello", [None, 5, {}, {"role": "x"}, {"role": []}, {"role": "worker", "member": []}]
)
def test_strange_introductions(wires: Callable[[], Wire], hello: Any) -> None:
    ask_anyway(wires(), JOB_QUEUE, "join", hello)
    if isinstance(hello, dict):
        ask_anyway(wires(), JOB_QUEUE, "join", {**this_side("client"), **hello})


@pytest.mark.parametrize("slots", ["x", None, -5, 0, [], 1 << 70])
def test_a_worker_with_strange_slots(wires: Callable[[], Wire], slots: Any) -> None:
    wire = wires()
    try:
        worker = join(wire, "worker", slots=slots)
    except CwmpError:
        return
    client_wire = wires()
    client = join(client_wire, "client")
    wire.request(JOB_QUEUE, "take", worker, 3)
    client_wire.call(JOB_QUEUE, "put", client, [(1, b"f", b"x")])
    wire.close()


@pytest.mark.parametrize(
    ("target", "method"),
    [
        ("Nothing", "status"),
        (JOB_QUEUE, "__init__"),
        (JOB_QUEUE, "_master"),
        (RESULT_QUEUE, "put"),
        (None, "x"),
        ([], {}),
    ],
)
def test_calls_of_what_is_not_offered(wires: Callable[[], Wire], target: Any, method: Any) -> None:
    with pytest.raises(CwmpError):
        wires().call(target, method)


class Evil:
    def __reduce__(self) -> Any:
        return os.abort, ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"garbage",
        pickle.dumps(5),
        pickle.dumps((1, 2)),
        pickle.dumps((JOB_QUEUE, "put", Evil(), {})),
    ],
)
def test_frames_that_are_no_requests(wires: Callable[[], Wire], body: bytes) -> None:
    wire = wires()
    wire.send_bytes(body)
    wire.deadline(WAIT_S)
    try:
        while True:
            wire.recv_bytes()
    except (EOFError, OSError) as error:
        assert not isinstance(error, socket.timeout), "it should have hung up"


def test_peers_that_have_no_key_and_send_what_they_like(cluster: LocalCluster) -> None:
    host, port = parse_address(cluster.address)
    garbage = [b"GET / HTTP/1.0\r\n\r\n", b"\xff" * 1000, b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b""]
    for data in garbage * 10:
        with socket.create_connection((host, port or 0), timeout=WAIT_S) as peer:
            peer.sendall(data)


def test_a_crowd_of_silent_peers(cluster: LocalCluster) -> None:
    host, port = parse_address(cluster.address)
    crowd = [socket.create_connection((host, port or 0), timeout=WAIT_S) for _ in range(100)]
    try:
        with cluster.executor() as executor:
            assert executor.submit(jobs.add, 1).result(WAIT_S) == 2
    finally:
        for peer in crowd:
            peer.close()
