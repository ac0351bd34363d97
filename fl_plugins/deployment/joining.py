"""Start SuperNodes and wait until the SuperLink has let each of them in.

Flower lets a node in only if it believes it to be offline. After a SuperNode was killed, or its machine has
lost power, the SuperLink believes it to be online for up to 60 s (twice the interval of heartbeats), and
until then the same node that starts again is refused and ends. A service manager starts it until it is let
in (``Restart=always``, ``restart: unless-stopped``); this does the same for a deployment on one machine.
"""

import time
from collections.abc import Sequence

from fl_plugins.errors import RunFailedError
from fl_plugins.simulation.superlink import START_TIMEOUT_S, log_tail, strip_colours

from . import processes
from .layout import Layout, Role

_LET_IN = "SuperNode ID:"
_REFUSED = "Failed to activate SuperNode"
_POLL_S = 0.2
_PAUSE_S = 2.0
"""Before a refused node is started again."""


def join(layout: Layout, nodes: Sequence[Role], *, timeout_s: float = START_TIMEOUT_S) -> None:
    """Start these SuperNodes, again and again while they are refused, and return when all are let in.

    Raises
    ------
    RunFailedError
        If one ends for another reason, or is not let in in time.
    """
    deadline = time.monotonic() + timeout_s
    before = {node: _start(node) for node in nodes}
    while before:
        time.sleep(_POLL_S)
        for node, offset in list(before.items()):
            said = _log_from(node, offset)
            if _LET_IN in said:
                del before[node]
            elif not processes.is_running(node):
                if _REFUSED not in _log_from(node, offset):
                    processes.check_alive(node)
                time.sleep(_PAUSE_S)
                before[node] = _start(node)
        processes.check_alive(layout.server)
        if before and time.monotonic() > deadline:
            node = next(iter(before))
            raise RunFailedError(
                f"{node.name}: not let in by the SuperLink within {timeout_s:g} s; is its key registered "
                f"(`fl-plugins deploy register`)? The end of its log is:\n{log_tail(node.log)}"
            )


def _start(node: Role) -> int:
    """Start a SuperNode and return where its part of the log begins."""
    offset = node.log.stat().st_size if node.log.exists() else 0
    processes.start(node)
    return offset


def _log_from(node: Role, offset: int) -> str:
    """Return what a node has logged since then."""
    with node.log.open("rb") as file:
        file.seek(offset)
        return strip_colours(file.read().decode(errors="replace"))
