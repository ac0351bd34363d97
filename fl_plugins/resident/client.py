"""Ask this node's worker, and start it if there is none.

Of all processes that find no worker, the one that holds the lock starts it, and hands it a socket on which it
listens already: whoever comes before the worker is up waits in the socket's queue, so nobody has to poll.
"""

import fcntl
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from flwr.app import Context, Message, RecordDict

from .._flower import context_to_bytes, message_to_bytes, records_from_bytes
from .address import Address, address_of, prepare
from .errors_wire import recreate
from .lifetime import ProcessId, deployed_node
from .protocol import Frame, ProtocolError, check_same_user, receive, send
from .settings import Settings

logger = logging.getLogger("flwr.fl_plugins")

Handler = Callable[[Message, Context], RecordDict]

WORKER_MODULE = "fl_plugins.resident.worker"
LISTENER_FD = 3
_BACKLOG = 16
_ATTEMPTS = 2
"""A worker may end, of age or of too much memory, just when it is asked; the second is a fresh one."""


class WorkerUnavailableError(Exception):
    """There is no worker that answers; the message says why."""


def serve(kind: str, message: Message, context: Context, locally: Handler) -> RecordDict:
    """Let this node's worker handle a message, or handle it here if there is no worker.

    Parameters
    ----------
    kind : str
        A name in :data:`fl_plugins.apps.serving.HANDLERS`.
    message, context : Message, Context
        What the ClientApp was given. The worker sees an empty ``context.state``.
    locally : Callable[[Message, Context], RecordDict]
        The same handler, for this process.

    Guarantees
    ----------
    The worker runs the same function on the same input, so what it returns, or raises, is the same.
    """
    node = deployed_node()
    settings = Settings.from_node_config(context.node_config)
    if node is None or not settings.enabled:
        return locally(message, context)
    try:
        told = ask(kind, message, context, node=node, settings=settings)
    except (WorkerUnavailableError, OSError, ProtocolError, ValueError) as error:
        logger.warning("The resident worker is not used for this message: %s", error)
        return locally(message, context)
    if told.header["status"] == "error":
        raise recreate(told.header)
    return records_from_bytes(bytes(told.first))


def warm_up(context: Context) -> None:
    """Let the worker of this node be started and import what the run needs, without waiting for it."""
    node = deployed_node()
    settings = Settings.from_node_config(context.node_config)
    if node is None or not settings.enabled:
        return
    try:
        with _connection(_address(context, node), settings) as connection:
            send(connection, Frame(_header("prepare"), b"", context_to_bytes(context)))
    except (WorkerUnavailableError, OSError, ProtocolError, ValueError) as error:
        logger.warning("The resident worker could not be started: %s", error)


def ask(kind: str, message: Message, context: Context, *, node: ProcessId, settings: Settings) -> Frame:
    """Return the reply of the node's worker.

    Raises
    ------
    WorkerUnavailableError
        If no worker could be started, or none lived long enough to answer.
    """
    request = Frame(_header(kind), message_to_bytes(message), context_to_bytes(context))
    address = _address(context, node)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with _connection(address, settings) as connection:
                send(connection, request)
                return receive(connection)
        except (ProtocolError, BrokenPipeError, ConnectionResetError) as error:
            if attempt == _ATTEMPTS:
                raise WorkerUnavailableError(f"it ended before it had answered ({error})") from error
            logger.info("The resident worker has ended; a fresh one is asked.")
    raise AssertionError("the last attempt returns or raises")


def _header(kind: str) -> dict[str, object]:
    return {"kind": kind, "path": sys.path}


def _address(context: Context, node: ProcessId) -> Address:
    return address_of(node, node_id=context.node_id, node_config=context.node_config)


@contextmanager
def _connection(address: Address, settings: Settings) -> Iterator[socket.socket]:
    """Give a connection to the node's worker, which is started if there is none."""
    connection = _connect(address) or _start_and_connect(address, settings)
    with connection:
        check_same_user(connection)
        yield connection


def _connect(address: Address) -> socket.socket | None:
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


def _start_and_connect(address: Address, settings: Settings) -> socket.socket:
    """Start a worker, unless another process is doing so, and return a connection to it."""
    if not address.node.is_alive():
        raise WorkerUnavailableError(f"its node, process {address.node.pid}, has ended")
    prepare(address)
    with address.lock.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, or this process ends
        connection = _connect(address)
        if connection is None:
            _start(address, settings)
            connection = _connect(address)
    if connection is None:
        raise WorkerUnavailableError(
            "it ended as soon as it was started; its last words are in the node's log"
        )
    return connection


def _start(address: Address, settings: Settings) -> None:
    """Start a worker that listens at ``address``; its output goes where this process's goes."""
    with suppress(FileNotFoundError):
        address.socket.unlink()  # of a worker that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(address.socket))
        listener.listen(_BACKLOG)
        command = [sys.executable, "-P", "-m", WORKER_MODULE, str(address.folder)]
        command += [str(address.node.pid), str(address.node.started)]
        command += [repr(settings.memory_mb), repr(settings.idle_s)]
        pid = os.posix_spawn(
            sys.executable,
            command,
            os.environ,
            setsid=True,  # Ctrl-C in the node's terminal is for the node; the worker follows it
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, listener.fileno(), LISTENER_FD),
            ],
        )
    logger.info("Started resident worker %d for this node.", pid)
