"""The worker's process: serves one message after the other with everything warm, until its node ends.

Started by :mod:`.client` as ``python -P -m fl_plugins.resident.worker FOLDER PID STARTED MEMORY_MB IDLE_S``
with the listening socket as file descriptor 3.

=================================  ==================================================
it ends                            what the next message finds
=================================  ==================================================
when its node has ended            nothing: there is none
after ``IDLE_S`` without message   no worker; it starts one
after a reply, above ``MEMORY_MB`` no worker; it starts one
when installed code has changed    the new code's address, where nobody listens yet
when it is killed                  a dead socket; it starts a fresh one
=================================  ==================================================
"""

import logging
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from flwr.app import Context, Message, RecordDict

from .._flower import context_from_bytes, message_from_bytes, records_to_bytes
from .address import code_fingerprint
from .errors_wire import describe
from .launch import LISTENER_FD, close_foreign_files
from .lifetime import ProcessId
from .protocol import Frame, ProtocolError, check_same_user, receive, send

logger = logging.getLogger("flwr.fl_plugins")

Handlers = Mapping[str, Callable[[Message, Context], RecordDict]]

_PREFIX = f"[resident worker {os.getpid()}]"

REQUEST_TIMEOUT_S = 60.0
"""For each piece of a request: a client that stopped in its middle does not hold up the next."""

CHECK_EVERY_S = 30.0
"""How often an idle worker looks whether the installed code has changed."""


def main(folder: str, node: ProcessId, *, memory_mb: float, idle_s: float) -> str:
    """Serve until there is a reason to end, and return it."""
    code = code_fingerprint()
    listener = socket.socket(fileno=LISTENER_FD)
    threading.Thread(target=_end_with, args=(node, folder), daemon=True).start()
    from ..apps.serving import HANDLERS  # what takes long: clients already wait in the socket's queue

    last = time.monotonic()
    while True:
        listener.settimeout(min(CHECK_EVERY_S, idle_s))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            if time.monotonic() - last >= idle_s:
                return f"there was no message for {idle_s:g} s"
            if code_fingerprint() != code:
                return "the installed code has changed"
            continue
        with connection:
            serve_one(connection, HANDLERS)
        last = time.monotonic()
        if (used := resident_mb()) > memory_mb:
            return f"it holds {used:.0f} MiB, and {memory_mb:.0f} MiB are its limit"


def serve_one(connection: socket.socket, handlers: Handlers) -> None:
    """Answer one request; whatever is wrong with it, or with who sent it, does not end the worker."""
    try:
        check_same_user(connection)
        connection.settimeout(REQUEST_TIMEOUT_S)
        request = receive(connection)
        connection.settimeout(None)
        send(connection, answer(request, handlers))
    except (ProtocolError, OSError) as error:
        logger.warning("%s A request was not answered: %s", _PREFIX, error)


def answer(request: Frame, handlers: Handlers) -> Frame:
    """Run the handler that is asked for; its exception is the answer, too."""
    started = time.perf_counter()
    kind = request.header.get("kind")
    try:
        if isinstance(kind, str) and isinstance(request.header.get("path"), list):
            sys.path[:] = request.header["path"]  # the address says that it is this one: see address.py
        context = context_from_bytes(bytes(request.second))
        if kind == "prepare":
            from ..apps.serving import prepare

            prepare(context)
            return _ok(started)
        message = message_from_bytes(bytes(request.first))
        body = records_to_bytes(handlers[str(kind)](message, context))
        logger.info("%s %s in %.3f s.", _PREFIX, kind, time.perf_counter() - started)
        return _ok(started, body)
    except Exception as error:
        return Frame({"status": "error", "pid": os.getpid(), **describe(error)})


def _ok(started: float, body: bytes = b"") -> Frame:
    return Frame({"status": "ok", "pid": os.getpid(), "seconds": time.perf_counter() - started}, body)


def resident_mb() -> float:
    """Return how many MiB of memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def _end_with(node: ProcessId, folder: str) -> None:
    """End this process as soon as its node has ended, even in mid-training."""
    node.wait()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _run(folder: str, pid: str, started: str, memory_mb: str, idle_s: str) -> None:
    """Run :func:`main` with what the command line says."""
    close_foreign_files()
    node = ProcessId(int(pid), int(started))
    reason = main(folder, node, memory_mb=float(memory_mb), idle_s=float(idle_s))
    logger.info("%s Ends: %s.", _PREFIX, reason)
    with suppress(OSError):
        (Path(folder) / "socket").unlink()
    logging.shutdown()
    os._exit(0)  # XLA's threads have nothing to say any more


if __name__ == "__main__":
    _run(*sys.argv[1:])
