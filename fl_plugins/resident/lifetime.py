"""Which process a node is, and whether it is still there.

A process id is used again after its process has ended; together with the time at which the process was
started it names one process for good.
"""

import os
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.5
_CLIENT_APP = "flwr-clientapp"
_PARENT = "--parent-pid"


@dataclass(frozen=True)
class ProcessId:
    """One process: its id, and when it was started (clock ticks since the machine was)."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> "ProcessId | None":
        """Return the process that has this id now, or ``None`` if there is none, or only its remains."""
        try:
            text = Path("/proc", str(pid), "stat").read_text(errors="replace")
        except OSError:
            return None
        fields = text.rpartition(")")[2].split()  # the name before it may contain anything
        state, started = fields[0], fields[19]
        return None if state in "ZX" else cls(pid, int(started))

    def is_alive(self) -> bool:
        """Return whether this very process still runs."""
        return ProcessId.of(self.pid) == self

    def wait(self) -> None:
        """Return once it has ended."""
        try:
            handle = os.pidfd_open(self.pid)
        except OSError:  # it has ended, or this kernel has no such handles
            while self.is_alive():
                time.sleep(_POLL_S)
            return
        try:
            if self.is_alive():  # the handle is that of this process, not of one that has its id now
                poll = select.poll()
                poll.register(handle, select.POLLIN)
                poll.poll()
        finally:
            os.close(handle)


def deployed_node(arguments: Sequence[str] | None = None) -> ProcessId | None:
    """Return the process that stands for the node, if this is a ClientApp process of a deployed SuperNode.

    A SuperNode's SuperExec starts ``flwr-clientapp ... --parent-pid <itself>`` for every message, and ends
    with its SuperNode. Flower's simulation runs clients in Ray actors, which stay warm by themselves and have
    no such command line; a ClientApp in a container of its own has no parent to name. Neither is given a
    worker, nor is a system other than Linux: it has no ``SO_PEERCRED`` and no ``/proc``.
    """
    arguments = sys.argv if arguments is None else arguments
    if sys.platform != "linux" or not arguments or Path(arguments[0]).name != _CLIENT_APP:
        return None
    try:
        parent = int(arguments[list(arguments).index(_PARENT) + 1])
    except (ValueError, IndexError):
        return None
    return ProcessId.of(parent) if parent > 1 else None
