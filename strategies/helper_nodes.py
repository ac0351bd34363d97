"""Which nodes are helpers of additive sharing: they say so themselves, once, and are clients of nothing."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fl_plugins import wire
from fl_plugins.additive_round import HELPER, LAYER, ROLE
from fl_plugins.errors import QuorumError
from fl_plugins.secagg import Stage
from fl_plugins.secure_round import STAGES

from .exchange import exchange
from .roster import Roster
from .secure_exchange import ANSWER_ERRORS, by_sender, read_answer

_PAUSE_S = 0.2
_SAY_EVERY_S = 10.0

logger = logging.getLogger("flwr.fl_plugins")


@dataclass
class HelperRoster(Roster):
    """Clients, and beside them the helpers.

    Parameters
    ----------
    announced : Mapping
        What of the config every message carries.
    config_key : str
        Key of the ConfigRecord in messages.
    answer_timeout_s : float
        How long an answer to the question who helps is waited for.
    known : frozenset[bytes], optional
        The helpers' identities: whoever else says that it helps is none.
    """

    announced: Mapping[str, Any] = field(default_factory=dict)
    config_key: str = wire.CONFIG
    answer_timeout_s: float = 60.0
    known: frozenset[bytes] | None = None
    _helpers: set[int] = field(default_factory=set)
    _silent: set[int] = field(default_factory=set)
    """Nodes that have not said what they are: asked again while helpers are missing."""

    def wait_for_helpers(self, grid: Grid, num_helpers: int, *, timeout_s: float) -> list[int]:
        """Return the nodes of ``num_helpers`` connected helpers, the lowest ids first.

        Raises
        ------
        QuorumError
            If there are fewer when ``timeout_s`` has passed.
        """
        deadline, said = time.monotonic() + timeout_s, 0.0
        while True:
            self._look(grid, timeout_s)
            present = sorted(self._helpers.intersection(self._connected))
            if len(present) >= num_helpers:
                break
            if time.monotonic() >= deadline:
                raise QuorumError(
                    f"{LAYER}: {len(present)} helpers are connected after {timeout_s:g} s, but "
                    f"helpers={num_helpers} are needed; start SuperNodes with --node-config "
                    f"'{ROLE}=\"{HELPER}\"' (in a simulation: simulated-helpers={num_helpers} in the run "
                    "config), or lower helpers."
                )
            if time.monotonic() - said > _SAY_EVERY_S:
                said = time.monotonic()
                logger.info("waiting for helpers: %d connected, %d needed", len(present), num_helpers)
            for node in self._silent:
                self._names.pop(node, None)
            self._connected = ()
            time.sleep(_PAUSE_S)
        if len(present) > num_helpers:
            logger.warning("%d nodes say that they help; the first %d do", len(present), num_helpers)
        return present[:num_helpers]

    def _learn(self, grid: Grid, nodes: Sequence[int], timeout_s: float, *, connected: Sequence[int]) -> None:
        """Ask ``nodes`` whether they help; all others are asked who they are."""
        self._ask(grid, [node for node in nodes if node not in self._helpers], cohort_size=len(connected))
        clients = [node for node in nodes if node not in self._helpers]
        super()._learn(grid, clients, timeout_s, connected=connected)

    def _may_be_client(self, node: int) -> bool:
        """Return whether a node is no helper: those are clients of nothing."""
        return node not in self._helpers

    def _ask(self, grid: Grid, nodes: Sequence[int], *, cohort_size: int) -> None:
        """Note which nodes help, and which do not answer."""
        facts = {
            **self.announced,
            wire.STAGE: STAGES.index(Stage.ADVERTISE),
            wire.COHORT_SIZE: cohort_size,
        }
        question = RecordDict({self.config_key: ConfigRecord(facts)})
        sent = [Message(question, node, MessageType.TRAIN) for node in nodes]
        self._silent.update(nodes)
        if not sent:
            return
        for node, reply in by_sender(sent, exchange(grid, sent, timeout_s=self.answer_timeout_s)):
            self._silent.discard(node)
            try:
                said, _ = read_answer(reply, Stage.ADVERTISE, has_vector=False, layer=LAYER)
            except ANSWER_ERRORS as error:
                logger.warning("node %d does not say whether it helps: %s", node, error)
                continue
            if not said.startswith(HELPER.encode()):
                continue
            if self.known is not None and said.removeprefix(HELPER.encode()) not in self.known:
                logger.warning("node %d says that it helps, but it is not in the helpers' roster", node)
                continue
            self._helpers.add(node)
