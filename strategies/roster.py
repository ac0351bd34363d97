"""Who is there: nodes by their stable client names, and the sampling of a cohort.

Flower draws a new random id for every node of every simulation. Sampling and summation that go by those
ids are not reproducible, so nodes are asked once for their stable name (the partition id); a node that
does not understand the question keeps its node id as its name.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_plugins import wire
from fl_plugins.errors import QuorumError

from .exchange import exchange

_PAUSE_S = 0.2
_SAY_EVERY_S = 10.0

logger = logging.getLogger("flwr.fl_plugins")


@dataclass
class Roster:
    """Names of the nodes seen so far; ``roll_call=False`` names every node after its id."""

    roll_call: bool = False
    names: dict[int, str] = field(default_factory=dict)

    def wait_for(self, grid: Grid, num_nodes: int, *, timeout_s: float) -> dict[int, str]:
        """Return node id → client name of all connected nodes, once there are ``num_nodes``.

        Raises
        ------
        QuorumError
            If fewer are connected when ``timeout_s`` has passed.
        """
        deadline = time.monotonic() + timeout_s
        said = 0.0
        while len(connected := sorted(grid.get_node_ids())) < num_nodes:
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                logger.info("waiting for nodes: %d connected, %d needed", len(connected), num_nodes)
            if time.monotonic() >= deadline:
                raise QuorumError(
                    f"roster: {len(connected)} nodes are connected after {timeout_s:g} s, but {num_nodes} "
                    "are needed; start more SuperNodes (simulation: num-supernodes) or lower "
                    "min_available_nodes."
                )
            time.sleep(_PAUSE_S)
        self._learn_names(grid, [node for node in connected if node not in self.names], timeout_s)
        return {node: self.names[node] for node in connected}

    def _learn_names(self, grid: Grid, nodes: list[int], timeout_s: float) -> None:
        """Ask ``nodes`` for their names; names that two nodes claim get the node id appended."""
        fresh = {node: f"node-{node}" for node in nodes}
        if self.roll_call and nodes:
            question = RecordDict({wire.CONFIG: ConfigRecord({wire.SCHEMA: wire.SCHEMA_VERSION})})
            messages = [Message(question, node, wire.ROLL_CALL) for node in nodes]
            for reply in exchange(grid, messages, timeout_s=timeout_s):
                name = _name_in(reply)
                if name is not None and reply.metadata.src_node_id in fresh:
                    fresh[reply.metadata.src_node_id] = name
        taken = set(self.names.values())
        for node, name in sorted(fresh.items()):
            unique = f"{name}@{node}" if name in taken else name
            taken.add(unique)
            self.names[node] = unique


def sample_cohort(clients: Mapping[int, str], size: int, *, rng: np.random.Generator) -> dict[int, str]:
    """Draw ``size`` of ``clients`` without replacement; depends on their names, not on node ids."""
    ordered = sorted(clients.items(), key=lambda item: name_order(item[1]))
    chosen = sorted(rng.choice(len(ordered), size=size, replace=False).tolist())
    return dict(ordered[index] for index in chosen)


def name_order(name: str) -> tuple[int, int, str]:
    """Sort key: numbers by value, then everything else by text."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def _name_in(reply: Message) -> str | None:
    """Return the client name in a roll-call reply, or ``None`` if the node does not know the question."""
    if reply.has_error():
        return None
    for record in reply.content.config_records.values():
        name = record.get(wire.CLIENT_ID)
        if isinstance(name, str) and 0 < len(name) <= 200:
            return name
    return None
