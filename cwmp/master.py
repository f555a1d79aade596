"""The process that serves the broker: `JobQueue` and `ResultQueue`, a real clock, a sweeper.

One thread does everything, so the broker needs no lock. A worker's `take` and a client's `collect`
stand for as long as they are connected, and are looked at after the requests at hand have been
served: so what came in together goes out together.
"""

from __future__ import annotations

import logging
import os
import platform
import random
import time
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Set, Tuple

from . import __version__, defaults
from .broker import Broker
from .depot import Depot, mark_of
from .encryption import DEFAULT, Encryption
from .hearsay import whole_number, whole_numbers
from .loop import Loop
from .members import CLIENT, WORKER, Member, Members
from .messages import BLOB_STORE, JOB_QUEUE, PROTOCOL, RESULT_QUEUE, Event, Job, python_minor, said_of_itself
from .server import RECEIPT, STANDING, Peer, Server
from .shortage import Shortage
from .standing import Collect, Take

log = logging.getLogger("cwmp.master")


class JobQueue:
    """What workers and clients call to pass jobs on; `messages` lists the calls."""

    exposed = ("cluster", "join", "put", "cancel", "alive", "take", "drain", "status")

    def __init__(self, master: Master) -> None:
        self._master = master

    def cluster(self, peer: Peer) -> Dict[str, str]:
        """Who this is: for those who found the address in a file, and may have found another master."""
        return {"name": self._master.name, "nonce": self._master.nonce}

    def join(self, peer: Peer, hello: Dict[str, Any]) -> Dict[str, Any]:
        """Take in a client or worker of our versions; see `members`."""
        return self._master.join(peer, hello)

    def put(self, peer: Peer, client: int, jobs: List[Job], prompt: bool = True) -> Any:
        """Queue a client's jobs."""
        if self._master.broker.submit(client, jobs):
            self._master.touched.add(client)
        return None if prompt else RECEIPT

    def cancel(self, peer: Peer, client: int, numbers: List[int]) -> List[int]:
        """Withdraw those of a client's jobs that have not been handed out."""
        return self._master.broker.cancel(client, numbers)

    def alive(self, peer: Peer, client: int, numbers: List[int]) -> List[int]:
        """Those of a client's jobs that it will hear of (again)."""
        return self._master.broker.alive(client, whole_numbers(numbers))

    def take(self, peer: Peer, worker: int, limit: int) -> Any:
        """From now on send a worker leases, up to `limit` in all until a report changes that."""
        self._master.broker.heard(worker, self._master.now())
        if worker in self._master.let_go:
            return None
        self._master.takes[worker] = Take(peer, whole_number(limit), self._master.slots[worker])
        self._master.set_limit(worker, limit)
        return STANDING

    def drain(self, peer: Peer, workers: List[int]) -> List[int]:
        """Let workers go when what they run has ended, however long that takes; returns those that are here.

        They give back at once what they have not begun.
        """
        return [worker for worker in whole_numbers(workers) if self._master.drain(worker)]

    def status(self, peer: Peer) -> Dict[str, Any]:
        """What `cwmp-status` shows."""
        return self._master.status()


class ResultQueue:
    """What workers call to report and clients to collect; `messages` lists the calls."""

    exposed = ("report", "collect", "leave")

    def __init__(self, master: Master) -> None:
        self._master = master

    def report(self, peer: Peer, worker: int, report: Dict[str, Any], prompt: bool = True) -> Any:
        """A worker's news: outcomes, starts, deaths, returned jobs, its limit and facts about itself."""
        broker, touched = self._master.broker, self._master.touched
        origins = None
        broker.note_report(worker)
        facts = report.get("facts")
        broker.heard(worker, self._master.now(), said_of_itself(facts) if facts else None)
        try:
            touched |= broker.finish(worker, report.get("outcomes", ()))
        except Exception:
            touched.update(self._master.collects)  # what came before the nonsense has ended
            raise
        if len(report) > 1 or "outcomes" not in report:
            if "running" in report:
                touched |= broker.running(worker, report["running"])
                origins = broker.origins(worker, report["running"])
            for ticket, cause in report.get("died", ()):
                touched |= broker.died(worker, ticket, cause)
            broker.give_back(worker, report.get("returned", ()))
            if "unfit" in report:
                broker.decline(worker, whole_numbers(report["unfit"]))
            if "limit" in report:
                self._master.set_limit(worker, report["limit"])
        if origins:  # at once: if we are killed when others have heard, it must know whose jobs it runs
            peer.answer(origins)
            return STANDING
        return None if prompt else RECEIPT

    def collect(self, peer: Peer, client: int, after: int) -> Any:
        """From now on send a client its events that follow number `after`; again: up to there it has them."""
        master = self._master
        master.broker.acknowledge(client, whole_number(after))
        known = master.collects.get(client)
        if known is None or known.peer is not peer:
            master.collects[client] = Collect(peer, after, master.now())
            peer.channel.on_drained = lambda: master.touched.add(client)
        master.touched.add(client)
        return STANDING

    def leave(self, peer: Peer) -> None:
        """The member whose connection this is says goodbye."""
        self._master.leave(peer)


class Master:
    """Binds and listens at once; `serve()` works until `stop()`.

    Raises OSError, naming the address, where it can't listen. `leash_fd` is a descriptor whose end
    of file stops the master: who holds the other end takes it along, however it ends. Large values
    are kept in a directory made in `blob_dir`, `blob_limit` bytes of them at most; see `shelf`. `listed_in`
    is the directory where this name stands for no other master; without one, its port tells it from others.
    """

    def __init__(
        self,
        host: str,
        port: int,
        authkey: bytes,
        *,
        name: str = defaults.CLUSTER_NAME,
        encrypt: Encryption = DEFAULT,
        leash_fd: Optional[int] = None,
        blob_dir: Optional[str] = None,
        blob_limit: Optional[int] = None,
        listed_in: Optional[str] = None,
    ) -> None:
        self.name, self._encrypt = name, encrypt
        self.nonce = os.urandom(8).hex()  # tells this master from every other
        self._loop = Loop()
        self._server = Server((host, port), authkey, self._loop, encrypt)
        self.address: Tuple[str, int] = self._server.address
        mark = mark_of(name, authkey, listed_in or f"port {self.address[1]}")
        try:
            self.depot = Depot(blob_dir, blob_limit, self._notify, mark)
        except BaseException:
            self._server.close()
            self._loop.close()
            raise
        self.broker = Broker(blobs=self.depot, first=1 + 1000 * random.SystemRandom().randrange(100_000))
        self.depot.on_offer = self.broker.note_request
        self.slots: Dict[int, int] = {}  # by worker
        self.let_go: Set[int] = set()  # workers that are told to leave
        self.takes: Dict[int, Take] = {}  # by worker
        self._hungry: OrderedDict[int, Take] = OrderedDict()  # those with room, longest waiting first
        self.collects: Dict[int, Collect] = {}  # by client
        self.touched: Set[int] = set()  # clients whose parked call may have an answer now
        self.now = time.monotonic
        self._resting: Set[int] = set()  # workers that had no time for what there was
        self._cut = False  # an answer stopped at MAX_BATCH_BYTES: the next round goes on
        self._started = self.now()
        self._members = Members(self.broker, name, self.nonce, self.now)
        self._members.on_away = self._on_away
        self._members.on_gone = self.part
        self._shortage = Shortage(self.broker, self._members)
        self._stopping = False
        self._server.on_gone = self._members.lose
        self._server.serve(JOB_QUEUE, JobQueue(self), JobQueue.exposed)
        self._server.serve(RESULT_QUEUE, ResultQueue(self), ResultQueue.exposed)
        self._server.serve(BLOB_STORE, self.depot, Depot.exposed)
        if leash_fd is not None:
            self._loop.watch(leash_fd, lambda: self._on_leash(leash_fd))

    def serve(self) -> None:
        """Serve until `stop()`."""
        next_sweep = self.now() + defaults.SWEEP_S
        try:
            while not self._stopping:
                try:
                    more = self.touched or self._cut
                    self._round(0.0 if more else max(0.0, next_sweep - self.now()))
                    if self.now() >= next_sweep:
                        next_sweep = self.now() + defaults.SWEEP_S
                        self._sweep(self.now())
                        self._shortage.recover(self.now())
                except MemoryError:
                    self._shortage.relieve()
                except Exception:  # whatever made it, it must not end everybody's jobs
                    log.exception("the master goes on after an error of its own")
        finally:
            self._members.say_goodbye("the master was stopped")
            self.depot.close()
            self._server.close()
            self._loop.close()

    def stop(self) -> None:
        """Make `serve()` return. Safe from signal handlers and other threads."""
        self._stopping = True
        self._loop.wake()

    # --- members -----------------------------------------------------------------------------

    def join(self, peer: Peer, hello: Dict[str, Any]) -> Dict[str, Any]:
        """Take in a client or worker, a further connection of one, or one that comes back."""
        welcome = self._members.join(peer, hello)
        role, ident = self._members.member_of(peer)
        if role == WORKER and ident not in self.slots:
            self.slots[ident] = hello["slots"]
        return {**welcome, "version": __version__, "store": self.depot.facts()}

    def leave(self, peer: Peer) -> None:
        """The member whose connection this is says goodbye."""
        if peer.member is not None:
            self._members.part(peer.member, None)

    def part(self, member: Member, lost: Optional[str]) -> None:
        """A member has left, or (with the reason in `lost`) was given up."""
        role, ident = member
        self._on_away(member)
        if role == CLIENT:
            self.broker.leave_client(ident)
        else:
            self.slots.pop(ident, None)
            self.let_go.discard(ident)
            if lost is None:
                self.broker.leave_worker(ident)
            elif ident in self.broker.workers():
                log.warning("worker %s lost: %s", ident, lost)
                self.touched |= self.broker.lose_worker(ident, lost)
        self.depot.leave(role, ident)

    def _on_away(self, member: Member) -> None:
        """A member has no connections: nothing can be sent to it."""
        role, ident = member
        if role == CLIENT:
            self.collects.pop(ident, None)
        else:
            self.takes.pop(ident, None)
            self._hungry.pop(ident, None)

    def _notify(self, client: int, event: Event) -> None:
        """Give a client an event that is no job's."""
        if self.broker.notify(client, event):
            self.touched.add(client)

    def set_limit(self, worker: int, limit: int) -> None:
        """A worker wants `limit` leases in all. Raises UsageError."""
        take = self.takes.get(worker)
        if take is None:
            return
        take.limit = whole_number(limit)
        if take.room <= 0 or worker in self.let_go:
            self._hungry.pop(worker, None)
        elif worker not in self._hungry:
            self._hungry[worker] = take

    def drain(self, worker: int) -> bool:
        """Let a worker go; False if it is not here."""
        here = self.broker.drain(worker)
        if here:
            self.let_go.add(worker)
            self._hungry.pop(worker, None)
            if worker in self.takes:
                self.takes[worker].peer.answer(None)
        return here

    # --- the rounds --------------------------------------------------------------------------

    def _round(self, timeout_s: float) -> None:
        """Take in what has arrived, then answer: who waits for work or events first."""
        self._loop.poll(timeout_s)
        if self.depot.store.restless:
            self._tend_blobs()
        self._hand_out()
        self._deliver()
        self._server.flush()

    def _tend_blobs(self) -> None:
        """Remove the blobs that are needed no more, and tell those whom that concerns."""
        self.depot.purge()
        names = self.depot.forgotten()
        for take in list(self.takes.values()) if names else ():
            take.peer.answer(("forget", names))

    def _hand_out(self) -> None:
        """Share what is queued among the workers that wait, in proportion to their room."""
        self._cut = False
        hungry, broker = self._hungry, self.broker
        if not hungry or not broker.queued or self.depot.store.flooded:
            return
        takers = self._takers()
        room = sum([take.room for _, take in takers])
        for worker, take in takers:
            if worker not in hungry:
                self._cut = True  # lost while others were served: its share is still here
                continue
            share = min(take.room, -(-broker.queued * take.room // room))
            room -= take.room
            hungry.move_to_end(worker)
            leases = broker.take(worker, share)
            if not leases:  # it has no time for what there is: it looks again with the next sweep
                del hungry[worker]
                self._resting.add(worker)
                self._cut = True  # others may have
                continue
            take.sent += len(leases)
            self._cut = self._cut or len(leases) < share
            if take.room <= 0:
                del hungry[worker]
            take.peer.answer(leases)  # last: if the connection breaks here, the worker is forgotten
            if not broker.queued:
                break

    def _takers(self) -> List[Tuple[int, Take]]:
        """Those who have waited longest, as few as will do, so that short jobs go out in large messages.

        Who has yet to receive what it was sent before is passed over.
        """
        takers = []
        uncovered = self.broker.queued
        for worker, take in self._hungry.items():
            if not take.peer.channel.congested:
                takers.append((worker, take))
                uncovered -= take.portion
                if uncovered <= 0:
                    break
        return takers

    def _deliver(self) -> None:
        """Send their new events to the clients; who is slow gets them later."""
        touched, self.touched = self.touched, set()
        for client in touched:
            collect = self.collects.get(client)
            if collect is None or collect.peer.channel.congested:
                continue
            seq, events = self.broker.collect(client, collect.sent)
            if events:
                collect.peer.answer((seq, events))
                collect.sent, collect.when = seq, self.now()
                if client in self.collects and self.broker.has_events(client, seq):  # else it has just gone
                    self.touched.add(client)

    def _sweep(self, now: float) -> None:
        """What is due by the clock: silent workers, overdue polls and handshakes."""
        while self._resting:
            worker = self._resting.pop()
            if worker in self.takes:
                self.set_limit(worker, self.takes[worker].limit)
        for worker in self.broker.expire(now):
            self._members.part((WORKER, worker), f"silent for {defaults.SILENT_S:g} s")
        self._members.tend(now)
        for collect in list(self.collects.values()):  # who is found gone is removed
            if now - collect.when >= defaults.POLL_S and not collect.peer.channel.congested:
                collect.peer.answer((collect.sent, []))  # a sign of life
                collect.when = now
        self._server.tend(now)
        self.depot.look_for_leftovers(now)

    def _on_leash(self, fd: int) -> None:
        if not os.read(fd, 4096):
            self._loop.forget(fd)
            self.stop()

    def status(self) -> Dict[str, Any]:
        """The state of the cluster as plain values."""
        host, port = self.address
        return {
            "name": self.name,
            "host": host if host not in ("0.0.0.0", "::") else platform.node(),
            "port": port,
            "pid": os.getpid(),
            "uptime_s": round(self.now() - self._started, 3),
            "version": __version__,
            "python": python_minor(),
            "protocol": PROTOCOL,
            "encryption": self._encrypt.facts(),
            "blobs": self.depot.status(),
            **self.broker.status(self.now()),
        }
