"""Ask this node's worker, which is started if there is none."""

import logging
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flwr.app import Context, Message, RecordDict

from .._flower import context_to_bytes, message_to_bytes, records_from_bytes
from .address import Address, address_of
from .errors_wire import recreate
from .launch import connect, start_and_connect
from .lifetime import ProcessId, deployed_node
from .protocol import Frame, ProtocolError, check_same_user, receive, send
from .settings import Settings
from .starter import start_starter

logger = logging.getLogger("flwr.fl_plugins")

Handler = Callable[[Message, Context], RecordDict]

WORKER_MODULE = "fl_plugins.resident.worker"
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
        start_starter(node)
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
    connection = connect(address)
    if connection is None:
        limits = (repr(settings.memory_mb), repr(settings.idle_s))
        connection = start_and_connect(address, WORKER_MODULE, *limits)
    if connection is None:
        raise WorkerUnavailableError("it ended as soon as it was started, or its node has ended")
    with connection:
        check_same_user(connection)
        yield connection
