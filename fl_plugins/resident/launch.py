"""Connect to a process that listens in its folder, and start it if there is none.

Of all processes that find none, the one that holds the lock starts it, and hands it a socket on which it
listens already: whoever comes before it is up waits in the socket's queue, so nobody has to poll.
"""

import fcntl
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

from .address import Address, prepare

logger = logging.getLogger("flwr.fl_plugins")

LISTENER_FD = 3
_BACKLOG = 16


def connect(address: Address) -> socket.socket | None:
    """Return a connection, or ``None`` if nobody listens."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(address.socket))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except BaseException:
        connection.close()
        raise
    return connection


def start_and_connect(address: Address, module: str, *arguments: str) -> socket.socket | None:
    """Start ``module``, unless another process is doing so, and return a connection, or ``None`` if it ended.

    It is run as ``python -P -m MODULE FOLDER PID STARTED ARGUMENT ...`` with its socket as file descriptor 3.
    """
    if not address.node.is_alive():
        return None
    prepare(address)
    with address.lock.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or this process ends
        if (connection := connect(address)) is None:
            _start(address, module, arguments)
            connection = connect(address)
    return connection


def close_foreign_files() -> None:
    """Close what else the parent had open: a process that stays would keep its files and locks."""
    os.closerange(LISTENER_FD + 1, 1024)


def _start(address: Address, module: str, arguments: Sequence[str]) -> None:
    """Start a process that listens at ``address``; its output goes where this process's goes."""
    with suppress(FileNotFoundError):
        address.socket.unlink()  # of one that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(address.socket))
        listener.listen(_BACKLOG)
        command = [sys.executable, "-P", "-m", module, str(address.folder)]
        command += [str(address.node.pid), str(address.node.started), *arguments]
        pid = os.posix_spawn(
            sys.executable,
            command,
            os.environ,
            setsid=True,  # Ctrl-C in the node's terminal is for the node; its helpers follow it
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, listener.fileno(), LISTENER_FD),
            ],
        )
    logger.info("Started %s for this node: process %d.", module.rpartition(".")[2], pid)
