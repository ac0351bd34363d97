"""A small real deployment on loopback, without TLS: SuperLink and SuperNodes, each in a tree of its own.

For tests and benchmarks of what happens on deployed nodes. Everything ends with the ``with`` block, or with
this process, whatever happens to it (:mod:`fl_plugins.simulation.keeper`).
"""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fl_plugins._flower import Control, RunStatus
from fl_plugins.errors import RunFailedError
from fl_plugins.simulation import keeper
from fl_plugins.simulation.superlink import environment, log_tail

START_TIMEOUT_S = 120.0
_POLL_S = 0.05

Value = bool | int | float | str


@dataclass
class Process:
    """One of the deployment's process trees: its keeper, and its log."""

    log_path: Path
    keeper: subprocess.Popen[bytes]

    def pid(self) -> int:
        """Return the process id of the command that the keeper started."""
        children = keeper.children(self.keeper.pid)
        if not children:
            raise RunFailedError(
                f"deployment: {self.log_path.name}: it has ended:\n{log_tail(self.log_path)}"
            )
        return min(children)

    def end(self) -> None:
        """End the tree."""
        if self.keeper.stdin is not None:
            with suppress(BrokenPipeError):
                self.keeper.stdin.close()
        self.keeper.wait(60)


@dataclass
class Deployment:
    """What runs: a SuperLink, and SuperNodes by partition id."""

    address: str
    superlink: Process
    nodes: list[Process] = field(default_factory=list)

    def run(
        self, bundle: bytes, run_config: Mapping[str, Value], *, timeout_s: float, poll_s: float = 0.1
    ) -> RunStatus:
        """Run an app to its end and return how it ended."""
        deadline = time.monotonic() + timeout_s
        with Control(self.address) as control:
            run_id = control.start_run(bundle, run_config, {})
            while not (status := control.run_status(run_id)).is_finished:
                if time.monotonic() > deadline:
                    raise RunFailedError(f"deployment: the run has not ended within {timeout_s:g} s.")
                time.sleep(poll_s)
        return status


@contextmanager
def local_deployment(
    folder: Path,
    *,
    node_configs: Sequence[str],
    variables: Mapping[str, str] | None = None,
    command: str = "flower-supernode",
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[Deployment]:
    """Start a SuperLink and one SuperNode per node config; logs go to ``folder``.

    Parameters
    ----------
    folder : Path
        Where ``superlink.log`` and ``node-0.log`` ... are written.
    node_configs : Sequence[str]
        What ``--node-config`` is given, one text per node.
    variables : Mapping[str, str] | None
        Environment variables on top of this process's.
    command : str
        What a SuperNode is started with: Flower's own command, or ``fl-plugins-supernode``.
    start_timeout_s : float
        Seconds to wait for the SuperLink to answer.
    """
    with ExitStack() as stack:
        first, *others = _free_ports(1 + len(node_configs))
        address = f"127.0.0.1:{first}"

        def start(name: str, *words: str) -> Process:
            home = Path(tempfile.mkdtemp(prefix="flp-", dir="/tmp"))  # socket paths are short
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            process = _start(folder / f"{name}.log", home, [*words], variables or {})
            stack.callback(process.end)
            return process

        flags = ["--insecure", "--isolation", "subprocess"]
        superlink = start(
            "superlink", "flower-superlink", *flags, "--host", "127.0.0.1", "--port", str(first)
        )
        _wait_until_healthy(superlink, address, start_timeout_s)
        deployment = Deployment(address, superlink)
        for number, (port, config) in enumerate(zip(others, node_configs, strict=True)):
            where = ["--superlink", address, "--port", str(port)]
            node = start(f"node-{number}", command, *flags, *where, "--node-config", config)
            deployment.nodes.append(node)
        yield deployment


def _start(log_path: Path, home: Path, command: list[str], variables: Mapping[str, str]) -> Process:
    """Start a keeper with a Flower command beside this Python."""
    command[0] = str(Path(sys.executable).parent / command[0])
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", keeper.__file__, str(home), *command],
            env={**environment(home, os.environ), **variables},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Process(log_path, process)


def _wait_until_healthy(process: Process, address: str, timeout_s: float) -> None:
    """Return once the SuperLink answers."""
    deadline = time.monotonic() + timeout_s
    while not _answers(address):
        if process.keeper.poll() is not None or time.monotonic() > deadline:
            raise RunFailedError(f"deployment: the SuperLink does not answer:\n{log_tail(process.log_path)}")
        time.sleep(_POLL_S)


def _answers(address: str) -> bool:
    """Return whether the health endpoint answers."""
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _free_ports(count: int) -> list[int]:
    """Return loopback ports that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
