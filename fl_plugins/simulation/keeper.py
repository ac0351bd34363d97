"""Keeps one process tree: starts a command, and ends everything that it started when asked, or left alone.

Run as a script with the standard library only (``python -I keeper.py FOLDER COMMAND ...``), in a session of
its own. Its standard input is a pipe whose other end its parent holds: when that closes, because the parent
wants it or because the parent died by any signal, the whole tree is ended and FOLDER is deleted. So nothing
stays behind, whatever happens to the parent.

On Linux the keeper is the *subreaper* of its tree: a process whose parent dies becomes the keeper's child
instead of init's, so that nothing escapes it (Ray's daemons, SuperExec's apps: the sessions and process
groups that they make do not matter). Elsewhere the tree is what ``ps`` shows.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_S = 2.0
"""Between asking (SIGTERM) and ending (SIGKILL)."""

_POLL_S = 0.05
_PR_SET_CHILD_SUBREAPER = 36


def main(folder: str, command: list[str]) -> int:
    """Run ``command`` until it ends or standard input closes; return its exit status, 0 if it was ended."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides, by its end of the pipe
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _adopt_orphans()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603
    status = 0
    try:
        while True:
            ended = _reap()
            if process.pid in ended:
                status = ended[process.pid]
                break
            if select.select([sys.stdin.fileno()], [], [], _POLL_S)[0]:
                break
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        end_tree(os.getpid())
        process.returncode = status
        shutil.rmtree(folder, ignore_errors=True)
    return status if status >= 0 else 128 - status


def end_tree(root: int, grace_s: float = GRACE_S) -> None:
    """End every descendant of this process, ``root``; returns when none is left, not even a zombie.

    A zombie counts: it may have threads that still run, and it goes once it is waited for.
    """
    deadline = time.monotonic() + grace_s
    asked: set[int] = set()
    while tree := descendants(root):
        force = time.monotonic() > deadline
        for pid in tree:
            if force or pid not in asked:
                asked.add(pid)
                _send(pid, signal.SIGKILL if force else signal.SIGTERM)
        time.sleep(_POLL_S)
        _reap()


def descendants(root: int) -> set[int]:
    """Return the processes below ``root``."""
    parents = _parents()
    found: set[int] = set()
    frontier = {root}
    while frontier:
        frontier = {pid for pid, parent in parents.items() if parent in frontier} - found
        found |= frontier
    return found


def children(parent: int) -> set[int]:
    """Return the processes that ``parent`` has started and not yet waited for."""
    return {pid for pid, above in _parents().items() if above == parent}


def _parents() -> dict[int, int]:
    """Return the parent of every process."""
    if os.path.isdir("/proc/self"):
        return dict(_from_proc())
    with subprocess.Popen(
        ["ps", "-A", "-o", "pid=,ppid="],  # noqa: S607  # its folder differs between systems
        stdout=subprocess.PIPE,
        text=True,
    ) as ps:
        rows = [row.split() for row in ps.communicate()[0].splitlines() if row.strip()]
    parents = {int(pid): int(parent) for pid, parent in rows}
    parents.pop(ps.pid, None)  # it is a child of ours itself
    return parents


def _from_proc() -> list[tuple[int, int]]:
    """Read ``(pid, parent)`` from /proc."""
    pairs = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path("/proc", name, "stat").read_text(errors="replace")
            except OSError:
                continue  # it has just ended
            pairs.append((int(name), int(text.rpartition(")")[2].split()[1])))
    return pairs


def _adopt_orphans() -> None:
    """Become the parent of orphaned descendants (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _reap() -> dict[int, int]:
    """Take leave of children that have ended; return their exit statuses."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def _send(pid: int, number: int) -> None:
    """Send a signal to a process that may just have ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
