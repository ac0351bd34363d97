"""The grid that audits run on: in this process, all nodes there from the start."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Message

from ..errors import QuorumError
from ..testing import InProcessGrid

_AT_ONCE = 64
_PATIENCE = 50
"""So often in a row a strategy may look who is there without sending anything."""


class AuditGrid(InProcessGrid):
    """Gives many replies at once, since servers pause after every answer, and never lets one wait in vain."""

    _looked = 0

    def get_node_ids(self) -> Iterable[int]:
        """Return all node ids.

        Raises
        ------
        QuorumError
            If the strategy waits for more nodes than there are.
        """
        self._looked += 1
        nodes = list(super().get_node_ids())
        if self._looked > _PATIENCE:
            raise QuorumError(
                f"audit: the strategy waits for more than the {len(nodes)} clients there are; take more, "
                "or lower its min_available_nodes and min_train_nodes."
            )
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages."""
        self._looked = 0
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Serve up to :data:`_AT_ONCE` of the waiting messages."""
        waiting = list(message_ids)
        replies: list[Message] = []
        while len(replies) < _AT_ONCE and (reply := list(super().pull_messages(waiting))):
            replies += reply
        return replies


@contextmanager
def quiet() -> Iterator[None]:
    """Keep hundreds of expected failures, and the run's progress, out of the log."""
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # a layer logs what failed at its node as an error
    try:
        yield
    finally:
        logger.setLevel(level)
