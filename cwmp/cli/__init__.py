"""The commands: one module each, with its arguments, what it prints and its exit status."""

from __future__ import annotations

import importlib
import sys
from typing import List, Optional

COMMANDS = {
    "master": "start the process that routes jobs",
    "worker": "run jobs on this node's cores, for a master",
    "status": "show a cluster's workers, clients and jobs",
    "local": "a whole cluster on this machine: start, stop, status, run",
    "slurm": "a cluster on SLURM: start, stop, status, scale, keep, script, run",
}


def main(argv: Optional[List[str]] = None) -> int:
    """`python -m cwmp COMMAND …`: hand over to the command's own `main`."""
    arguments = sys.argv[1:] if argv is None else argv
    command = arguments[0] if arguments else "--help"
    if command in COMMANDS:
        status: int = importlib.import_module(f"cwmp.cli.{command}").main(arguments[1:])
        return status
    if command in ("-h", "--help"):
        print("usage: python -m cwmp COMMAND …\n\nDistribute Python jobs over cores and nodes.\n\ncommands:")
        for name, purpose in COMMANDS.items():
            print(f"  {name:<8} {purpose}  (also: cwmp-{name})")
        print("\n`python -m cwmp COMMAND --help` tells the rest; --version prints the version.")
        return 0
    if command == "--version":
        from cwmp import __version__

        print(f"cwmp {__version__}")
        return 0
    print(f"cwmp: no command {command!r}: use one of {', '.join(COMMANDS)}", file=sys.stderr)
    return 2
