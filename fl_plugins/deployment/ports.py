"""Free ports of this machine's loopback, for deployments that live only for a trial."""

import random
import socket
from contextlib import ExitStack

from fl_plugins.errors import RunFailedError

_FIRST, _LAST = 20000, 32000
"""Below the range from which Linux gives ports to outgoing connections."""

_ATTEMPTS = 100


def free_ports(count: int) -> range:
    """Return ``count`` ports in a row that are free now; nobody holds them for the caller.

    Raises
    ------
    RunFailedError
        If none are found.
    """
    for _ in range(_ATTEMPTS):
        first = random.randrange(_FIRST, _LAST - count)  # noqa: S311  # not a secret
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
        return range(first, first + count)
    raise RunFailedError(f"deploy: no {count} free ports in a row from {_FIRST} to {_LAST}; give --port.")
