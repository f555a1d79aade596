"""Process 1 of a host (see hosts.py): makes the namespaces it was started in a host, and reaps.

    unshare --fork --pid --mount-proc --net --uts --mount python host_init.py NAME HOSTS_FILE [own-memory]

It ends when its standard input does, and the kernel then kills all that runs on the host. So nothing of a lab
outlives the test run that holds the other end, even one that was killed.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys


def main() -> None:
    """Name the host, let it know the others, say `ready`, and stay."""
    name, hosts, *options = sys.argv[1:]
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
    if "own-memory" in options:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    socket.sethostname(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test run, which then closes the pipe
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps what becomes this process's child
    print("ready", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
