"""Where everything of a deployment lies, and the settings that it was made with.

::

    <root>/
        deployment.toml      host, port, number of nodes, task; nothing secret
        authority/           ca.key and ca.crt: stays with whoever makes certificates
        server/              for the SuperLink's machine
        nodes/<i>/           for node i's machine: its own key and nothing of the others
        operator/            FLWR_HOME of whoever starts runs: ``flwr run . deployment``
        runs/<name>/         what ``fl-plugins deploy run`` keeps

Each of server, nodes/<i> and operator is copied to its machine as it is. What a running process writes is in
``state/`` inside its folder.
"""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fl_plugins.checks import check_int
from fl_plugins.errors import ConfigError
from fl_plugins.simulation.app_template import to_toml

from .certificates import AUTHORITY_DAYS, LOOPBACK, SERVER_DAYS, general_name

SETTINGS_FILE = "deployment.toml"
SUPERLINK_PORT = 9092
RUNTIME_PORT = 9094
_LAST_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a deployment is made with.

    Parameters
    ----------
    host : str
        IP address or DNS name under which nodes reach the SuperLink.
    port : int
        Its port, in [1, 65535].
    num_nodes : int
        SuperNodes, >= 1; node i has partition i.
    runtime_port : int
        Port that node 0 uses on its own machine's loopback; node i uses the i-th after it, so that several
        nodes can share a machine.
    task : str
        What ``fl-plugins deploy run`` trains if it is not told otherwise.
    days : int
        How long the server's certificate is valid, >= 1; no longer than the authority's own.

    Raises
    ------
    ConfigError
        If a value breaks its rule.
    """

    host: str
    port: int = SUPERLINK_PORT
    num_nodes: int
    runtime_port: int = RUNTIME_PORT
    task: str = "heart_disease"
    days: int = SERVER_DAYS

    def __post_init__(self) -> None:
        general_name(self.host)
        check_int("deploy", "nodes", self.num_nodes, minimum=1)
        check_int("deploy", "days", self.days, minimum=1)
        if self.days > AUTHORITY_DAYS:
            raise ConfigError(
                f"deploy: days={self.days}, but the authority's own certificate is valid for "
                f"{AUTHORITY_DAYS}; give at most as many."
            )
        for name, last in (("port", 0), ("runtime_port", self.num_nodes - 1)):
            check_int("deploy", name, getattr(self, name), minimum=1)
            if getattr(self, name) + last > _LAST_PORT:
                raise ConfigError(
                    f"deploy: {name}={getattr(self, name)}, but ports end at {_LAST_PORT} and {last + 1} are "
                    "needed from there; give a lower one."
                )
        if self.runtime_port <= self.port < self.runtime_port + self.num_nodes:
            raise ConfigError(
                f"deploy: port={self.port} is among the nodes' own ports {self.runtime_port} to "
                f"{self.runtime_port + self.num_nodes - 1}; give another --port or --runtime-port."
            )

    @property
    def address(self) -> str:
        """``host:port`` of the SuperLink, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether nodes reach the SuperLink over this machine's loopback."""
        return self.host.lower() in LOOPBACK


@dataclass(frozen=True)
class Role:
    """One process of a deployment: its folder, and where it leaves what it writes."""

    name: str
    folder: Path

    @property
    def start_script(self) -> Path:
        """What starts it, here and on its own machine."""
        return self.folder / "start.sh"

    @property
    def state(self) -> Path:
        """What it writes."""
        return self.folder / "state"

    @property
    def log(self) -> Path:
        """Its log, when it is started by ``fl-plugins deploy up``."""
        return self.state / "log"

    @property
    def pid_file(self) -> Path:
        """Which process it is, see :mod:`fl_plugins.deployment.pids`."""
        return self.state / "pid.json"


@dataclass(frozen=True)
class Layout:
    """The paths below a deployment's root."""

    root: Path
    settings: Settings

    @classmethod
    def open(cls, root: Path) -> "Layout":
        """Return the deployment in ``root``.

        Raises
        ------
        ConfigError
            If there is none.
        """
        path = root / SETTINGS_FILE
        try:
            given: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))["deployment"]
            known = {name: given[name.replace("_", "-")] for name in _setting_names()}
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"deploy: {root} holds no deployment ({type(error).__name__}: {error}); make one with "
                "`fl-plugins deploy init`."
            ) from None
        return cls(root.resolve(), Settings(**known))

    def describe(self) -> str:
        """Return what ``deployment.toml`` says."""
        return to_toml(
            {"deployment": {n.replace("_", "-"): getattr(self.settings, n) for n in _setting_names()}}
        )

    @property
    def server(self) -> Role:
        """The SuperLink."""
        return Role("server", self.root / "server")

    def node(self, number: int) -> Role:
        """Return SuperNode ``number``."""
        return Role(f"node {number}", self.root / "nodes" / str(number))

    @property
    def nodes(self) -> list[Role]:
        """All SuperNodes."""
        return [self.node(number) for number in range(self.settings.num_nodes)]

    def role(self, name: str) -> Role:
        """Return the server, or the node of that number.

        Raises
        ------
        ConfigError
            If there is no such role.
        """
        known = {"server": self.server, **{str(i): role for i, role in enumerate(self.nodes)}}
        if name not in known:
            raise ConfigError(f"deploy: {name!r} is none of {', '.join(known)}; name one of these.")
        return known[name]

    @property
    def authority(self) -> Path:
        """The certificate authority's folder."""
        return self.root / "authority"

    @property
    def operator(self) -> Path:
        """The folder of whoever starts runs."""
        return self.root / "operator"

    @property
    def runs(self) -> Path:
        """Where runs are kept."""
        return self.root / "runs"

    @property
    def root_certificate(self) -> Path:
        """The certificate that everybody trusts."""
        return self.authority / "ca.crt"

    def public_key(self, number: int) -> Path:
        """Return the public key of node ``number`` as the server's operator has it."""
        return self.server.folder / "node_keys" / f"{number}.pub"


def _setting_names() -> list[str]:
    """Return the names of all settings."""
    return [field.name for field in fields(Settings)]
