"""A deployment on one machine, for trials and tests: up, status, register, down."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fl_plugins._flower import Control, ControlError, NodeStatus
from fl_plugins.errors import ConfigError, RunFailedError
from fl_plugins.simulation.superlink import START_TIMEOUT_S, answers, log_tail, signals_as_exceptions

from . import processes
from .joining import join
from .layout import Layout, Role
from .node_keys import public_key_for_flower
from .pids import read_pid

BRING_BACK_TIMEOUT_S = 180.0
_POLL_S = 0.2


@dataclass(frozen=True)
class DeployedSuperLink:
    """The SuperLink of a deployment, as :func:`fl_plugins.simulation.session.run_app` wants it."""

    layout: Layout

    @property
    def address(self) -> str:
        """``host:port``."""
        return self.layout.settings.address

    @property
    def root_certificates(self) -> Path:
        """The certificate to verify it by."""
        return self.layout.root_certificate

    def check_alive(self) -> None:
        """Raise ``RunFailedError`` if it has ended."""
        processes.check_alive(self.layout.server)

    def control(self) -> Control:
        """Return a connection."""
        return Control(self.address, root_certificates=self.root_certificates)


@dataclass(frozen=True, kw_only=True)
class RoleStatus:
    """One line of ``deploy status``."""

    role: Role
    running: bool
    pid: int | None
    flower: str
    """What the SuperLink says: ``online``, ``offline``, ``registered``, ``unregistered``, or ``""``."""


@contextmanager
def running(layout: Layout, *, note: Callable[[str], None] = lambda _: None) -> Iterator[DeployedSuperLink]:
    """Bring a deployment up for the block, and end all of it afterwards, whatever happens, signals included.

    Raises
    ------
    RunFailedError
        If a process ends or does not answer in time.
    """
    with signals_as_exceptions():
        try:
            yield up(layout, note=note)
        finally:
            down(layout)


def up(
    layout: Layout,
    *,
    timeout_s: float = START_TIMEOUT_S,
    note: Callable[[str], None] = lambda _: None,
) -> DeployedSuperLink:
    """Start the SuperLink, register the nodes' keys, start the SuperNodes, and wait until all are connected.

    Roles that run already are left alone.

    Raises
    ------
    RunFailedError
        If a process ends or does not answer in time.
    """
    superlink = DeployedSuperLink(layout)
    if not processes.is_running(layout.server):
        processes.start(layout.server)
    wait_for_superlink(superlink, timeout_s=timeout_s)
    note(f"SuperLink answers on {superlink.address} (TLS)")
    added = register(layout)
    note(f"{len(added)} node keys registered, {layout.settings.num_nodes - len(added)} known already")
    join(layout, [node for node in layout.nodes if not processes.is_running(node)], timeout_s=timeout_s)
    wait_for_nodes(layout, layout.nodes, timeout_s=timeout_s)
    note(f"{layout.settings.num_nodes} SuperNodes connected")
    return superlink


def down(layout: Layout) -> list[Role]:
    """End all processes of a deployment, the nodes at once and then the SuperLink; return who had any."""

    def end(role: Role) -> tuple[Role, bool, str]:
        try:
            return role, processes.end(role), ""
        except RunFailedError as error:  # the others are ended all the same
            return role, True, str(error)

    with ThreadPoolExecutor(layout.settings.num_nodes) as pool:
        told = list(pool.map(end, layout.nodes))
    told.append(end(layout.server))
    if failures := [text for _, _, text in told if text]:
        raise RunFailedError(" ".join(failures))
    return [role for role, had_any, _ in told if had_any]


def register(layout: Layout, numbers: Sequence[int] | None = None) -> list[int]:
    """Register the public keys of nodes (by default all) that the SuperLink does not know; return which.

    Raises
    ------
    ConfigError
        If the SuperLink refuses.
    """
    added = []
    with DeployedSuperLink(layout).control() as control:
        try:
            known = {node.public_key for node in control.nodes() if node.status != "unregistered"}
            for number in range(layout.settings.num_nodes) if numbers is None else numbers:
                key = public_key_for_flower(layout.public_key(number))
                if key not in known:
                    control.register_node(key, name=f"node-{number}")
                    added.append(number)
        except ControlError as error:
            raise ConfigError(f"deploy: keys could not be registered: {error}") from None
    return added


def status(layout: Layout) -> list[RoleStatus]:
    """Return what runs on this machine, and what the SuperLink says of its nodes if it answers."""
    known: dict[bytes, NodeStatus] = {}
    answers_now = processes.is_running(layout.server)
    if answers_now:
        try:
            known = _nodes_by_key(layout)
        except ControlError:
            answers_now = False
    lines = [_role_status(layout.server, "answers" if answers_now else "")]
    for number, node in enumerate(layout.nodes):
        told = known.get(public_key_for_flower(layout.public_key(number)))
        unknown = "not registered" if answers_now else ""
        lines.append(_role_status(node, unknown if told is None else told.status))
    return lines


def wait_for_superlink(superlink: DeployedSuperLink, *, timeout_s: float = START_TIMEOUT_S) -> None:
    """Return once the SuperLink answers over TLS.

    Raises
    ------
    RunFailedError
        If it ends, or does not answer in time.
    """
    deadline = time.monotonic() + timeout_s
    while not answers(superlink.address, root_certificates=superlink.root_certificates):
        superlink.check_alive()
        if time.monotonic() > deadline:
            log = superlink.layout.server.log
            raise RunFailedError(
                f"SuperLink: no answer on {superlink.address} within {timeout_s:g} s; is another program on "
                f"that port, or the certificate out of date? The end of its log is:\n{log_tail(log)}"
            )
        time.sleep(_POLL_S)


def wait_for_nodes(layout: Layout, nodes: Sequence[Role], *, timeout_s: float = START_TIMEOUT_S) -> None:
    """Return once the SuperLink calls these nodes online.

    Raises
    ------
    RunFailedError
        If one ends, or is not online in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        lines = {line.role: line for line in status(layout)}
        missing = [node for node in nodes if lines[node].flower != "online"]
        if not missing:
            return
        for node in missing:
            processes.check_alive(node)
        processes.check_alive(layout.server)
        if time.monotonic() > deadline:
            raise RunFailedError(
                f"{missing[0].name}: not connected to the SuperLink within {timeout_s:g} s; the end of its "
                f"log is:\n{log_tail(missing[0].log)}"
            )
        time.sleep(_POLL_S)


def bring_back(layout: Layout, number: int, *, timeout_s: float = BRING_BACK_TIMEOUT_S) -> None:
    """Start a SuperNode that was killed, again and again until the SuperLink takes it; see :mod:`.joining`.

    Raises
    ------
    RunFailedError
        If it is not connected in time.
    """
    join(layout, [layout.node(number)], timeout_s=timeout_s)


def _nodes_by_key(layout: Layout) -> dict[bytes, NodeStatus]:
    """Return what the SuperLink knows of the nodes, by public key."""
    with DeployedSuperLink(layout).control() as control:
        return {node.public_key: node for node in control.nodes()}


def _role_status(role: Role, flower: str) -> RoleStatus:
    """Return one line."""
    started = read_pid(role.pid_file)
    running_now = started is not None and started.is_running()
    pid = started.pid if started is not None and running_now else None
    return RoleStatus(role=role, running=running_now, pid=pid, flower=flower)
