"""One exchange under way: who was asked, and what became of each reply."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from flwr.app import Message

from fl_plugins.aggregation.core import Aggregator
from fl_plugins.errors import ReplyError
from fl_plugins.records import Layout
from fl_plugins.run_options import Emit
from fl_plugins.training import NamedArrays

from .options import Settings
from .replies import ClientReply, NonFiniteReplyError, Range, float_ranges, read_reply
from .roster import name_order

logger = logging.getLogger("flwr.fl_plugins")

Phase = Literal["train", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What became of a cohort: usable, refused and failed replies, and who did not answer in time.

    ``non_finite`` counts those of the refused replies whose parameters were not finite.
    """

    accepted: int = 0
    quarantined: int = 0
    failed: int = 0
    non_finite: int = 0
    missing: list[str] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """Number of replies, usable or not."""
        return self.accepted + self.quarantined + self.failed


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """One exchange under way: who was asked what, since when."""

    phase: Phase
    number: int
    attempt: int
    rule: Aggregator
    base: NamedArrays
    layout: Layout
    clients: dict[int, str]
    messages: Sequence[Message]
    started: float

    @cached_property
    def _asked(self) -> dict[str, int]:
        """Message id → node; ids are given when the messages are pushed, so look only after that."""
        return {m.metadata.message_id: m.metadata.dst_node_id for m in self.messages if m.metadata.message_id}

    @cached_property
    def _ranges(self) -> dict[str, Range]:
        """The ranges of the parameters that were sent."""
        return float_ranges(self.base)

    def sender(self, reply: Message) -> int:
        """Return the node that a reply comes from (Flower's own error replies name the message only)."""
        return self._asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)

    def judge(
        self, replies: Iterable[Message], settings: Settings, *, weighted: bool, emit: Emit
    ) -> tuple[list[ClientReply], Tally]:
        """Return the usable replies ordered by client, and the count; report each as it comes."""
        accepted: dict[int, ClientReply] = {}
        heard: set[int] = set()
        counts: Counter[str] = Counter()
        for message in replies:
            node = self.sender(message)
            client = self.clients.get(node, f"node-{node}")
            status, reason = "accepted", ""
            try:
                if node not in self.clients or node in heard:
                    raise ReplyError("the node was not asked in this round, or answered before")
                heard.add(node)
                accepted[node] = read_reply(
                    message,
                    client,
                    base=self.base if self.phase == "train" else None,
                    ranges=self._ranges,
                    layout=self.layout,
                    examples_key=settings.weighted_by_key,
                    examples_required=weighted,
                    max_num_examples=settings.max_num_examples,
                )
            except ReplyError as error:
                status, reason = ("failed" if message.has_error() else "quarantined"), str(error)
                counts["non_finite"] += isinstance(error, NonFiniteReplyError)
                logger.warning(
                    "round %d: client %s (node %d) %s: %s", self.number, client, node, status, reason
                )
            counts[status] += 1
            emit(
                "reply",
                round=self.number,
                phase=self.phase,
                client=client,
                node=node,
                seconds=round(time.monotonic() - self.started, 3),
                status=status,
                reason=reason,
            )
        missing = [client for node, client in self.clients.items() if node not in heard]
        if missing:
            logger.warning("round %d: no answer in time from %s", self.number, ", ".join(missing))
            emit("missing", round=self.number, phase=self.phase, clients=missing)
        ordered = sorted(accepted.values(), key=lambda reply: name_order(reply.client))
        return ordered, Tally(**counts, missing=missing)
