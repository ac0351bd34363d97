"""Ask nodes who they are; answers that come later than that are taken as they come, and never waited for."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_plugins import wire
from fl_plugins._flower import LOST_MESSAGE_ERRORS

from .exchange import exchange, post


@dataclass
class RollCall:
    """The questions of one run.

    A node has one question at a time, and may answer it rounds later. Whoever answers, be it with an error of
    an app that does not know the question, is not asked again. If a question or its answer is lost, since the
    node was gone, the node is asked again once it is back.
    """

    _asked: dict[int, Message] = field(default_factory=dict)
    """Node → its question, while there is no answer."""
    _lost: set[int] = field(default_factory=set)

    def ask(self, grid: Grid, nodes: Sequence[int], *, timeout_s: float) -> Iterator[tuple[int, Message]]:
        """Ask ``nodes`` and give their answers as they come, for ``timeout_s`` at most."""
        for reply in exchange(grid, self._questions(nodes), timeout_s=timeout_s):
            yield from self._answer(reply)

    def awaits(self, node: int) -> bool:
        """Whether a node was asked and has not answered."""
        return node in self._asked or node in self._lost

    def late(self, grid: Grid, connected: Collection[int], *, timeout_s: float) -> list[tuple[int, Message]]:
        """Return answers that have come since; ask those of ``connected`` again whose question was lost."""
        if again := self._lost.intersection(connected):
            post(grid, self._questions(sorted(again)), timeout_s=timeout_s)
        if not self._asked:
            return []
        replies = grid.pull_messages({question.metadata.message_id for question in self._asked.values()})
        return [answer for reply in replies for answer in self._answer(reply)]

    def _questions(self, nodes: Sequence[int]) -> list[Message]:
        """Return a question to each node; it has its id when it is sent."""
        question = RecordDict({wire.CONFIG: ConfigRecord({wire.SCHEMA: wire.SCHEMA_VERSION})})
        self._lost.difference_update(nodes)
        questions = {node: Message(question, node, wire.ROLL_CALL) for node in nodes}
        self._asked.update(questions)
        return list(questions.values())

    def _answer(self, reply: Message) -> Iterator[tuple[int, Message]]:
        """Give the node and its answer, if the reply is one to its latest question."""
        to = reply.metadata.reply_to_message_id
        for node, question in self._asked.items():
            if question.metadata.message_id == to:
                del self._asked[node]
                if reply.has_error() and reply.error.code in LOST_MESSAGE_ERRORS:
                    self._lost.add(node)
                else:
                    yield node, reply
                return
