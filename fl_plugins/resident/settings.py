"""What a node's operator says about its worker, in the node config."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checks import check_number
from ..errors import ConfigTypeError

ENABLED = "resident-worker"
MEMORY = "resident-worker-memory-mb"
IDLE = "resident-worker-idle-s"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a node's worker behaves.

    Parameters
    ----------
    enabled : bool
        Node config ``resident-worker``: whether there is one.
    memory_mb : float
        ``resident-worker-memory-mb``: a worker that holds more MiB of memory after a reply ends, and the next
        message starts a fresh one; > 0. By default a quarter of the machine's.
    idle_s : float
        ``resident-worker-idle-s``: it also ends after so many seconds without a message; > 0.

    Raises
    ------
    ConfigTypeError
        If a value has the wrong type.
    ConfigError
        If a value breaks its rule.
    """

    enabled: bool = True
    memory_mb: float
    idle_s: float = 3600.0

    @classmethod
    def from_node_config(cls, node_config: Mapping[str, Any]) -> "Settings":
        """Read the node config; what is not there has its default."""
        return cls(
            enabled=node_config.get(ENABLED, cls.enabled),
            memory_mb=node_config.get(MEMORY, machine_memory_mb() / 4),
            idle_s=node_config.get(IDLE, cls.idle_s),
        )

    def __post_init__(self) -> None:
        if type(self.enabled) is not bool:
            raise ConfigTypeError(
                f"node config: {ENABLED}={self.enabled!r} is a {type(self.enabled).__name__}; give true or "
                "false."
            )
        check_number("node config", MEMORY, self.memory_mb, minimum=0, open_below=True)
        check_number("node config", IDLE, self.idle_s, minimum=0, open_below=True)


def machine_memory_mb() -> float:
    """Return the machine's memory in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 20)
