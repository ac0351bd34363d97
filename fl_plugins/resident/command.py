"""``flwr-clientapp`` for a SuperNode's PATH: asks the node's starter for a process, or becomes the real one.

Run as ``python -I -S command.py REAL ARGUMENT ...`` by the script that :func:`.starter.write_command` writes:
with little of the standard library only, since every message waits for its start, and for nothing else of
what importing Flower takes. What it sends to the starter's socket are the arguments and its three
standard streams; what comes back is the exit status.
"""

import json
import os
import socket
import struct
import sys

VARIABLE = "FL_PLUGINS_STARTER"
"""Set for the real command if no starter was found: it then starts one for the messages to come."""


def main(real: str, arguments: list[str]) -> int:
    """Return the exit status of the process that the starter made, or become ``real``."""
    try:
        return forward(arguments)
    except (OSError, ValueError, IndexError):
        os.environ[VARIABLE] = "1"
        os.execv(real, [real, *arguments])  # noqa: S606


def forward(arguments: list[str]) -> int:
    """Let the starter serve this message; an error before it has agreed means that nothing has happened."""
    folder = starter_folder(int(arguments[arguments.index("--parent-pid") + 1]))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(f"{folder}/socket")
        user = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if user != os.getuid():
            raise PermissionError(user)
        words = json.dumps({"arguments": arguments, "folder": os.getcwd()}).encode()
        socket.send_fds(connection, [struct.pack("!Q", len(words))], [0, 1, 2])
        connection.sendall(words)
        if connection.recv(1) != b"y":
            raise OSError("the starter declines")
        status = connection.recv(1)  # comes when the process ends; nothing comes if it was killed
        return status[0] if status else 1


def starter_folder(parent: int) -> str:
    """Return the folder of the starter for children of the process ``parent``; see :mod:`.address`."""
    with open(f"/proc/{parent}/stat", errors="replace") as file:
        started = file.read().rpartition(")")[2].split()[19]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and len(runtime) <= 50 and os.path.isdir(runtime):
        base = f"{runtime}/fl-plugins"
    else:
        temporary = os.environ.get("TMPDIR", "/tmp")  # noqa: S108  # the folder's owner is checked by who made it
        base = f"{temporary if len(temporary) <= 50 else '/tmp'}/fl-plugins-{os.getuid()}"  # noqa: S108
    return f"{base}/{parent}-{started}-starter"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
