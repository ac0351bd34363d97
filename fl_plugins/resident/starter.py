"""A process that has imported Flower and forks a ``flwr-clientapp`` for every message, if one is wanted.

Importing Flower takes a second of CPU time in each fresh process. A SuperNode starts ``flwr-clientapp`` by
name; if :func:`write_command` has put our command of that name first on the SuperNode's PATH, the first
message is served by the real command, which also starts this process, and those after it by its forks. Each
still is a process of its own, which runs Flower's own ``flwr_clientapp()`` and ends.

It imports no JAX and runs no threads, since it forks. Random generators are seeded anew in every fork: they
would otherwise all draw the same numbers. It ends with its node, and when installed code has changed.
"""

import codecs
import gc
import json
import logging
import os
import select
import shlex
import shutil
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import httpx

from .._flower import pull_promptly
from ..errors import FLPluginsError
from ..registry import OWN_DISTRIBUTION, Kind, available, load
from . import command, guard
from .address import Address, check_private, code_fingerprint
from .launch import LISTENER_FD, close_foreign_files, connect, start_and_connect
from .lifetime import ProcessId
from .protocol import check_same_user

logger = logging.getLogger("flwr.fl_plugins")

STARTER_MODULE = "fl_plugins.resident.starter"
_PREFIX = f"[starter {os.getpid()}]"
_REQUEST_TIMEOUT_S = 10.0
_MAX_REQUEST_BYTES = 1 << 20


def write_command(folder: Path) -> Path:
    """Write the ``flwr-clientapp`` that belongs first on a SuperNode's PATH, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    real = Path(sys.executable).parent / guard.SCRIPT
    words = [sys.executable, "-I", "-S", command.__file__, str(real)]
    path = folder / guard.CLIENT_APP
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)
    return path


def start_starter(node: ProcessId) -> None:
    """Start this node's starter, if our command asks for one (:mod:`.command`)."""
    if not os.environ.pop(command.VARIABLE, ""):
        return
    address = Address(Path(command.starter_folder(node.pid)), node)
    if (connection := connect(address) or start_and_connect(address, STARTER_MODULE)) is not None:
        connection.close()


def main(folder: Path, node: ProcessId) -> str:
    """Fork a process for every request until there is a reason to end, and return it."""
    code = code_fingerprint()
    listener = socket.socket(fileno=LISTENER_FD)
    handle = os.pidfd_open(node.pid)
    if not node.is_alive():
        return "its node has ended"
    sys.argv[:] = [guard.CLIENT_APP, "--parent-pid", str(node.pid)]
    from flwr.supernode.cli import flwr_clientapp as flwr_clientapp  # what takes long

    from ..apps import client_app as client_app

    pull_promptly()
    preload_layers()
    preload_http()
    gc.collect()
    gc.freeze()  # else each fork's own collection would walk, and so copy, all that was imported here

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(handle, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if handle in ready:
            return "its node has ended"
        connection, _ = listener.accept()
        with connection:
            if code_fingerprint() != code:
                return "the installed code has changed"  # nothing is said: the command serves itself
            try:
                check_private(folder)
                _serve(connection, listener)
            except (OSError, ValueError, TypeError, KeyError) as error:
                logger.debug("%s A request was not served: %s", _PREFIX, error)


def preload_layers() -> None:
    """Read what plugins there are and import our own layers: every fork would do it for its one message."""
    for entry in available(Kind.MOD):
        if entry.owner == OWN_DISTRIBUTION:
            with suppress(FLPluginsError):  # whoever announces it is told
                load(Kind.MOD, entry.qualified)


def preload_http() -> None:
    """Import what httpx and zipfile import when they are first used, which every fork would do."""
    httpx.Client(trust_env=False).close()
    codecs.lookup("cp437")


def _serve(connection: socket.socket, listener: socket.socket) -> None:
    """Fork the process that a request asks for."""
    check_same_user(connection)
    connection.settimeout(_REQUEST_TIMEOUT_S)
    raw, streams, _, _ = socket.recv_fds(connection, 8, 3)
    try:
        size = int.from_bytes(raw, "big")
        if len(raw) != 8 or len(streams) != 3 or size > _MAX_REQUEST_BYTES:
            raise ValueError("no request of our command")
        words = b""
        while len(words) < size:
            if not (piece := connection.recv(size - len(words))):
                raise ValueError("it left in the middle of its request")
            words += piece
        request = json.loads(words)
        arguments, cwd = [str(word) for word in request["arguments"]], str(request["folder"])
        connection.settimeout(None)
        connection.sendall(b"y")
        if (pid := os.fork()) == 0:
            listener.close()
            _become_client_app(connection, streams, arguments, cwd)
        logger.info("%s forked process %d.", _PREFIX, pid)
    finally:
        for stream in streams:
            os.close(stream)


def _become_client_app(
    connection: socket.socket, streams: list[int], arguments: list[str], folder: str
) -> NoReturn:
    """Be what the command was to be: its arguments, streams and folder, and Flower's own main function."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.chdir(folder)
        sys.argv[:] = [guard.CLIENT_APP, *arguments]
        _seed_anew()
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        guard.main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
            connection.sendall(bytes([status & 0xFF]))
        os._exit(status & 0xFF)


def _seed_anew() -> None:
    """Seed NumPy's global generator from the system (``random`` does so itself when a process forks)."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(None)


def _end_with(connection: socket.socket) -> None:
    """End this process like Flower's if the command that it stands for was ended."""
    with suppress(OSError):
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


def _run(folder: str, pid: str, started: str) -> None:
    """Run :func:`main` with what the command line says."""
    close_foreign_files()
    node = ProcessId(int(pid), int(started))
    reason = main(Path(folder), node)
    logger.info("%s Ends: %s.", _PREFIX, reason)
    if not node.is_alive():  # else another may be starting in the same folder
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _run(*sys.argv[1:])
