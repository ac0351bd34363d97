"""The processes of one role on this machine: started detached, found again, ended with all that they started.

A role runs the ``start.sh`` that its operator would run. Its leader is known by pid and start time; what the
leader started, and what is left when the leader has died, by the environment that they inherit (Linux) or by
descent (elsewhere). A process that is neither is never signalled.
"""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from fl_plugins.errors import ConfigError, RunFailedError
from fl_plugins.simulation.keeper import descendants
from fl_plugins.simulation.superlink import environment, log_tail

from .layout import Role
from .pids import moment_of, read_pid, write_pid
from .scripts import ROLE_VARIABLE

GRACE_S = 15.0
"""Between asking (SIGTERM) and ending (SIGKILL): a SuperNode takes leave of its SuperLink meanwhile."""

_KILL_TIMEOUT_S = 30.0
_POLL_S = 0.05


def start(role: Role, *arguments: str) -> int:
    """Start a role detached from this process and return its pid; ``arguments`` go to its start script.

    Raises
    ------
    ConfigError
        If it runs already.
    """
    if is_running(role):
        raise ConfigError(f"deploy: {role.name} runs already; end it with `fl-plugins deploy down` first.")
    end(role)  # what a leader that was killed has left
    log = os.open(role.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        pid = os.posix_spawn(
            role.start_script,
            [str(role.start_script), *arguments],
            {**environment(role.state, os.environ), ROLE_VARIABLE: str(role.folder)},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, log, 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsid=True,
        )
    finally:
        os.close(log)
    write_pid(role.pid_file, pid)
    return pid


def is_running(role: Role) -> bool:
    """Whether the role's leader runs."""
    started = read_pid(role.pid_file)
    return started is not None and started.is_running()


def members(role: Role) -> set[int]:
    """Return the pids of all processes of a role: the leader, what it started, and what is left of it."""
    started = read_pid(role.pid_file)
    found = _marked(role.folder)
    if started is not None and started.is_running():
        found |= {started.pid} | descendants(started.pid)
    return {pid for pid in found if pid != os.getpid() and moment_of(pid) is not None}


def programs(role: Role, name: str) -> set[int]:
    """Return those members whose command line names a program, for example ``flwr-serverapp``."""
    return {pid for pid in members(role) if any(Path(word).name == name for word in _command(pid))}


def client_apps(role: Role) -> set[int]:
    """Return the processes that serve a message of a node now: ClientApps, or forks of its starter."""
    found = programs(role, "flwr-clientapp") | programs(role, "fl-plugins-clientapp")
    for starter in programs(role, "fl_plugins.resident.starter"):
        found |= descendants(starter)
    return found - programs(role, "fl_plugins.resident.worker")


def check_alive(role: Role) -> None:
    """Raise ``RunFailedError`` if a role has ended, with the end of its log."""
    if not is_running(role):
        reap(role)
        raise RunFailedError(f"{role.name}: it has ended; the end of {role.log} is:\n{log_tail(role.log)}")


def end(role: Role, *, grace_s: float = GRACE_S) -> bool:
    """Ask a role to end, and end what is left after ``grace_s``; return whether there was anything to end.

    Raises
    ------
    RunFailedError
        If a process is left all the same.
    """
    found = members(role)
    started = read_pid(role.pid_file)
    if started is not None and started.is_running():
        _send(started.pid, signal.SIGTERM)
        _wait_until_gone(role, grace_s)
    kill(role)
    role.pid_file.unlink(missing_ok=True)
    return bool(found)


def kill(role: Role) -> None:
    """End all processes of a role at once, as a power failure would (SIGKILL); return when none is left.

    Raises
    ------
    RunFailedError
        If one is left all the same.
    """
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while left := members(role):  # again: one may have started another meanwhile
        for pid in left:
            _send(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RunFailedError(
                f"{role.name}: processes {sorted(left)} do not end within {_KILL_TIMEOUT_S:g} s; end them "
                "by hand."
            )
        time.sleep(_POLL_S)
        reap(role)
    reap(role)


def reap(role: Role) -> int | None:
    """Take leave of a role that has ended, if this process started it; return its exit status if known."""
    started = read_pid(role.pid_file)
    if started is None:
        return None
    with suppress(ChildProcessError):
        pid, status = os.waitpid(started.pid, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
    return None


def _wait_until_gone(role: Role, timeout_s: float) -> None:
    """Return when no process is left, or after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while members(role) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        reap(role)


def _marked(folder: Path) -> set[int]:
    """Return the processes whose environment says that they belong to a role's folder (Linux)."""
    if sys.platform != "linux":
        return set()
    mark = f"{ROLE_VARIABLE}={folder}".encode()
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):  # another user's, or it has just ended
                if mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    found.add(int(name))
    return found


def _command(pid: int) -> list[str]:
    """Return a process's command line (Linux)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    return []


def _send(pid: int, number: int) -> None:
    """Send a signal to a process that may just have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
