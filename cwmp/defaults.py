"""Every constant, with its unit and what gets worse when it is smaller or larger."""

from __future__ import annotations

PORT = 5494
"""TCP port of a master, as in the original cluster-workers."""

CLUSTER_NAME = "default"
"""Name of a cluster that was given none."""

MAX_ATTEMPTS = 3
"""Slot deaths that one job may cause. Fewer: a passing fault ends a job. More: a job that
always crashes takes longer to say so."""

MAX_WORKER_LOSSES = 5
"""Whole workers that may vanish under one *running* job. This charges nobody's code; it only
keeps a job that takes its node down with it from doing so for ever."""

# --- time, in seconds -----------------------------------------------------------------------

HANDSHAKE_S = 10.0
"""From the first byte to a proven key. Smaller: slow nodes fail under load. Larger: silent
connections hold a thread longer."""

CONNECT_S = 5.0
"""One attempt at a TCP connection."""

WAIT_S = 60.0
"""How long a worker waits for a master that is not up yet."""

MASTER_TIMEOUT_S = 300.0
"""How long clients and workers that have lost their master wait for it, or for its successor. Smaller: a slow
restart costs all open jobs. Larger: it takes longer to say that it is gone for good."""

PRIVATE_MASTER_TIMEOUT_S = 2.0
"""The same in a cluster of one program: there nobody starts a master again."""

RETURN_TRY_S = 5.0
"""One attempt to get back to a master. Smaller: slow networks fail. Larger: where packets are swallowed, it
takes longer to notice that they no longer are."""

WORKER_AWAY_S = 1.5
"""So long a worker whose connection was closed may take to come back, before its jobs go to others. Smaller:
a passing fault has them run twice. Larger: jobs of a killed worker wait longer."""

CLIENT_AWAY_S = 10.0
"""The same for a client, before its jobs are dropped; none is begun meanwhile."""

CLIENT_UNREACHABLE_S = 300.0
"""The same for a client that did not close its connection: it vanished, and its network may come back.
Smaller: its jobs are run once more. Larger: what it queued takes up memory for longer."""

HOLD_OFF_S = 3.0
"""A master that was started anew hands out none of what clients bring from its predecessor for so long, until
workers have come to say what they run. Smaller: slow ones find their jobs given to others."""

OFFER_S = 60.0
"""So long it remembers what workers have brought from its predecessor, for clients that have yet to come."""

SPREAD_FROM = 64
"""Agents of one SLURM job that may come in the same moment. Fewer: some come later than they could. More:
the master proves the key to all of them at once, and nobody gets work meanwhile."""

SPREAD_S = 0.003
"""Time that each further agent adds to the span over which they spread. Joining costs a master 1 ms."""

SPREAD_MAX_S = 10.0
"""The longest such span; who is turned away then tries again."""

GRACE_S = 25.0
"""How long a worker that was told to stop lets running jobs finish. SLURM kills 30 s after it
asks; a larger value would be cut off there."""

ATTRIBUTE_CACHE_S = 3.0
"""How long a client looks again at what another node has published when nobody answers there. Network file
systems show a file as it was this long ago. Larger: it takes longer to say that a master is dead."""

LIMIT_LOOK_S = 300.0
"""How often an agent in a SLURM job asks when that ends. Smaller: 1,000 agents burden SLURM's controller.
Larger: a changed limit is noticed later."""

DRAIN_AHEAD_S = 15.0
"""So long before its time is up a worker takes no more jobs. Smaller: more jobs of unknown length are begun
in vain. Larger: more of the allocation is wasted."""

ANNOUNCED_AHEAD_S = 65.0
"""A signal to leave that comes so shortly before the worker's time is up is taken for SLURM's announcement of
just that (`--signal=B:TERM@30` comes 30 to 60 s ahead), and not for a command to be gone sooner."""

CUT_AHEAD_S = 5.0
"""So long before its time is up a worker ends what still runs, and hands it back. Must cover a report to a
busy master, and clocks that differ."""

LOOK_AHEAD_JOBS = 1000
"""Queued jobs of a client that are looked through for those that a worker near its end has time for. Fewer:
it may idle although there are some. More: each look costs the master more."""

POLL_S = 10.0
"""A client for which there is no event hears from the master this often. Smaller: more idle traffic.
Larger: that much later a silent master is taken for lost."""

REPLY_S = 15.0
"""How much later than due a reply may be before the caller takes the master for lost."""

BEAT_S = 2.0
"""A worker that has nothing to report still reports this often. Smaller: idle cost."""

SILENT_S = 15.0
"""A worker that was not heard for this long has lost its jobs. Smaller: a busy node or network
is taken for a dead one. Larger: jobs wait longer on a node that vanished."""

SWEEP_S = 1.0
"""How often the master looks for silent workers and overdue polls."""

NOTICE_S = 0.010
"""A job that runs longer than this is announced as running, and what is queued behind it in its
slot is taken back. Smaller: more ticks on a busy worker. Larger: jobs wait behind a long one."""

HAND_OVER_BYTES_S = 20e6
"""Bytes of arguments that a slot is expected to take in each second, before it can begin. Larger: large
arguments are taken back while they are being read. Smaller: a stopped slot keeps them longer."""

MAX_STALLS = 12
"""How often in a row a slot may begin nothing before it is replaced: about 12 s. Must stay well under
256, which is how many generations of claims can be told apart."""

TRANSFER_S = 30.0
"""A connection that carries large values may stand still for so long. Smaller: a busy disk or network is
taken for a broken one. Larger: what waits for the value waits longer."""

LEFTOVER_S = 120.0
"""A file of a large value that was written so long ago and never announced is removed. Smaller: one that
waits for a busy connection could be taken for it."""

# --- sizes ----------------------------------------------------------------------------------

HORIZON_S = 0.030
"""Work, in seconds a slot, that a worker keeps in stock. Must cover one round trip to the
master under load; more only moves the queue from the master, where it can still be routed."""

SLOT_HORIZON_S = 0.006
"""Work, in seconds, handed to one slot at a time. Must cover one wake-up of the agent and `PACE_MAX_S`."""

PACE_S = 20e-6
"""After a report a worker lets this pass for each outcome in it before it looks for the next ones, up to
`PACE_MAX_S`. More: larger batches, which cost everybody less, and later results on a busy cluster."""

PACE_LARGE = 50
"""For so many outcomes counts one with a large value there. More: each of them waits longer for others."""

PACE_MAX_S = 0.002
"""The longest such pause."""

PACE_FROM_JOBS = 8
"""Reports with fewer outcomes than this are followed by no pause: the worker is not busy."""

MAX_STOCK = 1000
"""Jobs a slot that a worker holds at most, however short they are."""

UNHURRIED = 3
"""Jobs that may be open, or reports since leases came, before a message asks for a prompt receipt. Fewer: one
who does a job at a time pays for receipts. More: a burst begins with more messages of a single job."""

MAX_BATCH_JOBS = 2000
"""Jobs in one message. Larger: fewer messages, longer pauses of each side while it works on one."""

BUFFER_JOBS = 10_000
"""Jobs that `map_unordered` submits ahead of the results taken, unless told otherwise. Fewer: a large
cluster with short jobs runs dry. More: memory, some 1 KiB for a small job."""

MAX_BATCH_BYTES = 1 << 20
"""Bytes in one message after which no further job is added to it."""

INLINE_MAX = 64 << 10
"""Bytes of a pickled value, or of one buffer in it, that ride in the queues; larger ones become blobs.
Smaller: small jobs pay for a file. Larger: queues and connections carry more, and every copy of it."""

NAMED_FROM = 2 << 20
"""A large value of at least so many bytes that is brought on the master's own machine is named by their
digest, so that others who bring the same bytes find it. Smaller: time for digests of values that nobody
sends again. Larger: programs that send the same bytes each keep their own."""

SHELF_MIN_BYTES = 1 << 30
"""Large values are kept in /dev/shm where it has at least so much room, else in the directory for
temporary files. Smaller: a container's tiny /dev/shm is chosen and fills up."""

WINDOW_BYTES = 64 << 20
"""Large values that a client may have sent without word from the master that there is room for them.
Smaller: it waits for each. Larger: that much over the limit, for each client."""

HOLD_S = 10.0
"""How long a client has the master keep a large value that it may send again. Smaller: values that are
used again are sent again. Larger: they take up room for longer."""

LOADED_SHARED = 64
"""Shared values that a slot keeps loaded. Fewer: programs with many load them again."""

HOLD_COUNT = 64
"""How many of them at most."""

HOLD_UNNAMED = 8
"""How many of those below `NAMED_FROM`. Larger: their memory is used again later, when no processor has it
in its cache any more."""

LARGE_WARNING_BYTES = 64 << 20
"""A job with a single value larger than this, not shared, is worth a warning."""

MAX_FRAME_BYTES = 4 << 30
"""A longer frame is taken for a confused peer, not for a message."""

MAX_HALF_OPEN = 128
"""Connections that may be proving their key at once, a short-lived thread each; the oldest makes room. Fewer:
in a crowd of silent ones it takes longer to get in. More: they hold more threads."""

BACKLOG = 4096
"""Connections that the kernel holds for the master (it lowers this to its own limit)."""

READ_BYTES = 64 << 10
"""Bytes taken from a socket or pipe in one call. Larger: from 128 KiB the C library maps and unmaps
memory for every call, which costs more than the calls that it saves."""

LOADED_FUNCTIONS = 256
"""Functions that a slot keeps loaded. Fewer: programs with many functions load them again."""

REPEATED_CHANGES = 3
"""Jobs in a row that may change what came with their function before a slot loads it anew for each, without
looking. More: looks in vain. Fewer: two functions that share a class may be loaded in turns."""

LOADS_A_CHECK = 16
"""Of a function that is loaded anew for each job, one load in so many is looked at again. Fewer: more looks
in vain. More: a function that is left as it was again goes on being loaded for a while."""

CLASSES_OF_ARGUMENTS = 8
"""Classes that a function takes along only because its arguments are of them. Fewer: one that is called with
many kinds is pickled again when the kind changes. More: each is looked at for changes at every submit."""

REMEMBERED_SESSIONS = 1000
"""Clients that a slot remembers having looked after edited modules for. Fewer: it looks more often."""

COLLECT_EVERY = 50_000
"""New objects in master or agent between two searches for reference cycles. Python's 700 would have
them search the queues all the time; more would let the cycles of rare errors stay longer."""

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""Numerical libraries start a thread for each core unless these say otherwise: in every slot."""
