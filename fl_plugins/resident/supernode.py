"""``fl-plugins-supernode``: Flower's ``flower-supernode``, same arguments, that serves messages promptly.

Two things differ from Flower's command, and nothing in what is sent:

- It looks for the next message soon after the last one, and ever more seldom while none comes or the
  SuperLink takes long to answer, instead of every 3 s; and for a ClientApp's reply every 0.05 s instead of
  0.5 s.
- Its ClientApp processes are forked with Flower already imported (:mod:`.starter`), and its SuperExec is told
  of a task when there is one, instead of asking every second.

And one thing is checked: a bundle that the node's policy does not list is not started (:mod:`.guard`).
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .._flower_node import poll_promptly, run_supernode
from ..errors import ConfigError
from .address import Address, base_folder, prepare
from .guard import allowed_bundles
from .lifetime import ProcessId
from .starter import write_command

TASK_POLL_VARIABLE = "FLWR_SUPEREXEC_TASK_POLL_INTERVAL"
TASK_POLL_S = 0.05


class Pauses:
    """How long to wait instead of so long as Flower would.

    Flower waits ``IDLE_S`` when there is no message, and less while a reply is awaited, which is how the two
    are told apart.
    """

    IDLE_S = 3.0
    SHORTEST_S = 0.05
    PART = 0.05
    """Of the time for which no message has come: what a message waits for on average is half of that."""

    TIMES_ASKING = 4.0
    """Pauses are so much longer than asking takes: many nodes, or a busy machine, ask less."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._idle_s = 0.0
        self._asked_from: float | None = None

    def instead_of(self, seconds: float) -> float:
        """Return the pause to make where Flower makes one of ``seconds``."""
        if seconds < self.IDLE_S:
            self._idle_s = 0.0
            self._asked_from = None
            return min(seconds, self.SHORTEST_S)
        now = self._clock()
        asking_s = 0.0 if self._asked_from is None else max(now - self._asked_from, 0.0)
        least = max(self.SHORTEST_S, self.PART * self._idle_s, self.TIMES_ASKING * asking_s)
        pause = min(least, seconds)
        self._idle_s += pause
        self._asked_from = now + pause
        return pause


def main() -> None:
    """Run the SuperNode."""
    scripts = Path(sys.executable).parent
    folders = [str(scripts), os.environ.get("PATH", os.defpath)]
    me = ProcessId.of(os.getpid()) if sys.platform == "linux" else None
    if me is not None:
        address = Address(base_folder() / f"{me.pid}-{me.started}-commands", me)
        prepare(address)  # and it is removed when another node starts after this one has ended
        folders.insert(0, str(write_command(address.folder).parent))
    elif allowed_bundles():
        raise ConfigError(
            f"fl-plugins-supernode: the policy has fab_hashes, which are not enforced on {sys.platform}; run "
            "this node on Linux."
        )
    os.environ["PATH"] = os.pathsep.join(folders)
    os.environ.setdefault(TASK_POLL_VARIABLE, str(TASK_POLL_S))
    sys.argv[0] = "flower-supernode"
    poll_promptly(Pauses().instead_of)
    run_supernode()


if __name__ == "__main__":
    main()
