"""A private local SuperLink: its own port, its own home, its own Ray, and nothing left when it ends.

``flwr run`` alone would talk to whatever answers on its fixed port, give a slow start 15 seconds, and leave
its SuperLink running. Here one is started for the run and ends with it.
"""

import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fl_plugins._flower import Control
from fl_plugins.errors import RunFailedError

from . import keeper

START_TIMEOUT_S = 300.0
"""A SuperLink starts in 3 s on an idle machine; on a busy one it has needed more than 20 s."""

END_TIMEOUT_S = 60.0
"""The keeper needs at most its grace period and a moment; more means that something is broken."""

PORT_ATTEMPTS = 3
LOG_TAIL_LINES = 20
_MAX_HOME_CHARS = 30
_POLL_S = 0.05


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink that runs: where it listens and what it logs."""

    address: str
    log_path: Path
    process: subprocess.Popen[bytes]

    def control(self) -> Control:
        """Return a connection; nothing but this machine can reach it, so there is no TLS."""
        return Control(self.address)

    def check_alive(self) -> None:
        """Raise ``RunFailedError`` if it has ended, with the end of its log."""
        status = self.process.poll()
        if status is not None:
            raise RunFailedError(
                f"SuperLink: flower-superlink ended with status {status}; the end of its log is:\n"
                + log_tail(self.log_path)
            )


@contextmanager
def local_superlink(log_path: Path, *, start_timeout_s: float = START_TIMEOUT_S) -> Iterator[SuperLink]:
    """Start a SuperLink in simulation mode, wait until it answers, and end it with all that it started.

    Parameters
    ----------
    log_path : Path
        Where its own log goes.
    start_timeout_s : float
        Seconds to wait for it to answer.

    Guarantees
    ----------
    When the block is left, by whatever exception or by SIGINT, SIGTERM or SIGHUP, every process that the
    SuperLink started has ended and its home is deleted. If this process is killed outright, the same happens
    a moment later (:mod:`fl_plugins.simulation.keeper`).

    Raises
    ------
    RunFailedError
        If the simulation engine is not installed, or the SuperLink ends or does not answer in time.
    """
    executable = _executable()
    with signals_as_exceptions():
        superlink = _start_healthy(executable, log_path, start_timeout_s)
        try:
            yield superlink
        finally:
            _end(superlink.process)


def environment(home: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the SuperLink and of all that it starts."""
    folders = [str(Path(sys.executable).parent), *inherited.get("PATH", os.defpath).split(os.pathsep)]
    own = {
        "PATH": os.pathsep.join(folders),  # SuperExec starts its commands by name; the venv may not be active
        "FLWR_HOME": str(home / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": ",".join(filter(None, [inherited.get("NO_PROXY"), "127.0.0.1,localhost"])),
        "no_proxy": ",".join(filter(None, [inherited.get("no_proxy"), "127.0.0.1,localhost"])),
    }
    defaults = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1"}  # of 1 s: a run starts and ends sooner
    theirs = {key: value for key, value in inherited.items() if key != "RAY_ADDRESS"}  # a stranger's cluster
    return {**defaults, **theirs, **own}


def log_tail(path: Path, *, lines: int = LOG_TAIL_LINES) -> str:
    """Return the last lines of a log without colour codes and without lines about requests."""
    text = path.read_text(errors="replace") if path.exists() else ""
    kept = [
        line for line in strip_colours(text).splitlines() if line.strip() and "[uvicorn.access]" not in line
    ]
    return "\n".join(kept[-lines:]) or "(the log is empty)"


def strip_colours(text: str) -> str:
    r"""Return text without ANSI escape sequences.

    >>> strip_colours("\x1b[92mINFO \x1b[0m: ready")
    'INFO : ready'
    """
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _executable() -> str:
    """Return the path of ``flower-superlink``: beside this Python, or else on the PATH."""
    beside = Path(sys.executable).parent / "flower-superlink"
    found = str(beside) if beside.exists() else shutil.which("flower-superlink")
    if found is None or importlib.util.find_spec("ray") is None:
        raise RunFailedError(
            "SuperLink: Flower's simulation engine is not installed; install it with "
            "`pip install 'fl-plugins[simulation]'`."
        )
    return found


def _start_healthy(executable: str, log_path: Path, timeout_s: float) -> SuperLink:
    """Start a SuperLink on a free port; if another program takes that port first, try with another one."""
    for attempt in range(1, PORT_ATTEMPTS + 1):
        with _reserved_port() as port:
            superlink = SuperLink(f"127.0.0.1:{port}", log_path, _start(executable, port, log_path))
            try:
                _wait_until_healthy(superlink, timeout_s)
            except BaseException as error:
                _end(superlink.process)
                lost_race = isinstance(error, RunFailedError) and _port_was_taken(log_path)
                if not lost_race or attempt == PORT_ATTEMPTS:
                    raise
            else:
                return superlink
    raise AssertionError("the last attempt returns or raises")


def _start(executable: str, port: int, log_path: Path) -> subprocess.Popen[bytes]:
    """Start the keeper, which starts the SuperLink."""
    home = _private_home()
    command = [executable, "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    try:
        with log_path.open("wb") as log:
            return subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", keeper.__file__, str(home), *command],
                env=environment(home, os.environ),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for us alone
            )
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Close the keeper's pipe and wait until it has ended everything."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise RunFailedError(
            f"SuperLink: its processes did not end within {END_TIMEOUT_S:g} s; end those below process "
            f"{process.pid} by hand."
        ) from None


def _wait_until_healthy(superlink: SuperLink, timeout_s: float) -> None:
    """Return once the SuperLink answers."""
    deadline = time.monotonic() + timeout_s
    while not answers(superlink.address):
        superlink.check_alive()
        if time.monotonic() > deadline:
            raise RunFailedError(
                f"SuperLink: no answer on {superlink.address} within {timeout_s:g} s; is the machine busy? "
                f"The end of its log is:\n{log_tail(superlink.log_path)}"
            )
        time.sleep(_POLL_S)


def answers(address: str, *, root_certificates: Path | None = None) -> bool:
    """Return whether the health endpoint answers, over TLS given a certificate; never through a proxy."""
    connection = http.client.HTTPConnection(address, timeout=5)
    if root_certificates is not None:
        context = ssl.create_default_context(cafile=str(root_certificates))
        connection = http.client.HTTPSConnection(address, timeout=5, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


@contextmanager
def _reserved_port() -> Iterator[int]:
    """Give a free loopback port that no other program is given meanwhile.

    On Linux two sockets may have one port as long as neither listens: the SuperLink can bind it although we
    hold it. Elsewhere it is let go at once, and a lost race is tried again.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        port: int = reservation.getsockname()[1]
        if sys.platform != "linux":
            reservation.close()
        yield port


def _port_was_taken(log_path: Path) -> bool:
    """Return whether the SuperLink ended because another program has its port."""
    return "address already in use" in log_path.read_text(errors="replace").lower()


def _private_home() -> Path:
    """Make the folder of everything that the SuperLink and Ray write.

    Ray puts UNIX sockets into it, whose paths may have about 100 characters; a long TMPDIR would break that.
    """
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="flp-", dir=base if len(base) <= _MAX_HOME_CHARS else "/tmp"))  # noqa: S108


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the stack like Ctrl-C does, unless somebody else handles them."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    changed = []
    with suppress(ValueError):  # only the main thread may set handlers
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, leave)
                changed.append(number)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
