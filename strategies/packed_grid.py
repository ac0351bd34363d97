"""A Grid over another one that sends and takes packed arrays where the node at the other end can.

Flower's Grid of a deployment moves every array as two objects, in requests of their own; see
:mod:`fl_plugins.packing`. In a simulation messages are handed over whole, and nothing is packed.
"""

import logging
from collections.abc import Iterable

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fl_plugins import wire
from fl_plugins._flower import Run, moves_objects
from fl_plugins.errors import ReplyError
from fl_plugins.packing import Piece, pack, unpack

logger = logging.getLogger("flwr.fl_plugins")


def packed(grid: Grid) -> Grid:
    """Return a grid that packs, if ``grid`` moves arrays one by one; else ``grid`` itself."""
    return PackedGrid(grid) if moves_objects(grid) else grid


class PackedGrid(Grid):
    """Pack messages to nodes whose roll-call reply had :data:`fl_plugins.wire.PACKS`; unpack all replies.

    A reply that says that it is packed, but cannot be unpacked, is handed on as it is: like any other reply
    without the model's arrays it is quarantined by who reads it.
    """

    def __init__(self, inner: Grid) -> None:
        self._inner = inner
        self._nodes: set[int] = set()

    def set_run(self, run: Run) -> None:
        """Set the run of the grid inside."""
        self._inner.set_run(run)

    @property
    def run(self) -> Run:
        """The run of the grid inside."""
        return self._inner.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message, as Flower's deprecated method does."""
        return self._inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return all node ids."""
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages, packed where the node understands it; they have their own content afterwards."""
        sent = list(messages)
        contents = [message.content if message.has_content() else None for message in sent]
        memory: dict[int, list[Piece]] = {}
        try:
            for message, content in zip(sent, contents, strict=True):
                if content is not None and message.metadata.dst_node_id in self._nodes:
                    message.content = pack(content, memory)
            return self._inner.push_messages(sent)
        finally:
            for message, content in zip(sent, contents, strict=True):
                if content is not None:
                    message.content = content

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull replies and unpack them."""
        replies = list(self._inner.pull_messages(message_ids))
        for reply in replies:
            if reply.has_content():
                self._read(reply)
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Not for our strategies: they take replies as they come (:mod:`.exchange`)."""
        return self._inner.send_and_receive(messages, timeout=timeout)

    def _read(self, reply: Message) -> None:
        """Unpack a reply, and note whether its node understands packed arrays."""
        node = reply.metadata.src_node_id
        if any(record.get(wire.PACKS) is True for record in reply.content.config_records.values()):
            self._nodes.add(node)
        try:
            reply.content = unpack(reply.content)
        except ReplyError as error:
            logger.warning("node %d: %s", node, error)
