"""One exchange under way: who was asked, and what became of each client's reply."""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fl_plugins import wire
from fl_plugins.aggregation.core import Aggregator
from fl_plugins.contracts import Weighting
from fl_plugins.errors import ConfigError, DivergenceError, QuorumError, ReplyError
from fl_plugins.finiteness import Range, float_ranges
from fl_plugins.records import Layout
from fl_plugins.run_options import Emit
from fl_plugins.training import NamedArrays

from .folding import Folds
from .node_replies import Asked, NodeReply, read_node_reply
from .options import Settings
from .replies import ClientReply, FailedReplyError, NonFiniteReplyError, read_reply
from .roster import name_order, name_some
from .session import Phase

logger = logging.getLogger("flwr.fl_plugins")


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
    """One exchange under way: who was asked what, since when.

    Parameters
    ----------
    clients : dict[str, int]
        The sampled clients, each with the node that it is on.
    hosts : frozenset[int]
        Those of the nodes that host virtual clients and answer for all of theirs in one reply.
    form : str, optional
        What hosts were asked to send: :data:`fl_plugins.wire.EACH` or ``SUM``.
    messages : sequence of Message
        What :meth:`ask` made; ``started`` is when.
    """

    phase: Phase
    number: int
    attempt: int
    rule: Aggregator
    base: NamedArrays
    layout: Layout
    clients: dict[str, int]
    hosts: frozenset[int]
    form: str | None
    messages: Sequence[Message] = ()
    started: float = 0.0

    @cached_property
    def _asked(self) -> dict[str, int]:
        """Message id → node; ids are given when the messages are pushed, so look only after that."""
        return {m.metadata.message_id: m.metadata.dst_node_id for m in self.messages if m.metadata.message_id}

    @cached_property
    def _on(self) -> dict[int, list[str]]:
        """Node → its clients."""
        return group_by_node(self.clients)

    @cached_property
    def _ranges(self) -> dict[str, Range]:
        """The ranges of the parameters that were sent."""
        return float_ranges(self.base)

    def ask(
        self,
        arrays: ArrayRecord,
        config: ConfigRecord,
        *,
        weighting: Weighting,
        stack: Mapping[str, Sequence[str]],
        announced_size: int,
        settings: Settings,
    ) -> Self:
        """Return this cohort with one message per node; a host's names its clients and how to answer.

        ``stack`` is what :data:`fl_plugins.wire.LAYERS` and ``PROMISES`` announce.
        """
        facts = {
            wire.SERVER_ROUND: self.number,
            wire.SCHEMA: wire.SCHEMA_VERSION,
            wire.COHORT_SIZE: announced_size,
        }
        common = {**config, **facts, **{key: list(specs) for key, specs in stack.items() if specs}}
        extra = {} if self.form is None else {wire.FORM: self.form, wire.WEIGHTING: weighting.value}
        kind = MessageType.TRAIN if self.phase == "train" else MessageType.EVALUATE
        messages = []
        for node, names in self._on.items():
            sent = ConfigRecord(common)
            if node in self.hosts:
                sent.update({wire.CLIENTS: [int(name) for name in names], **extra})
            # One ArrayRecord for all, which a deployed Grid uploads once.
            content = RecordDict({settings.arrayrecord_key: arrays, settings.configrecord_key: sent})
            messages.append(Message(content, node, kind, group_id=str(self.number)))
        return replace(self, messages=messages, started=time.monotonic())

    def tell_asked(self, emit: Emit, *, available: int) -> None:
        """Emit who is asked, of how many clients that are connected."""
        emit(
            "round_started" if self.phase == "train" else "evaluation_started",
            round=self.number,
            attempt=self.attempt,
            sampled=list(self.clients),
            available=available,
        )

    def sender(self, reply: Message) -> int:
        """Return the node that a reply comes from (Flower's own error replies name the message only)."""
        return self._asked.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)

    def judge(
        self,
        replies: Iterable[Message],
        settings: Settings,
        *,
        weighted: bool,
        emit: Emit,
        fold: Folds | None = None,
    ) -> tuple[list[ClientReply], Tally]:
        """Return the usable replies ordered by client, and the count; report each as it comes.

        With a ``fold`` the replies' float arrays go there, and are not among what is returned.
        """
        accepted: dict[str, ClientReply] = {}
        heard: set[int] = set()
        counts: Counter[str] = Counter()
        for message in replies:
            node = self.sender(message)
            read = self._read(message, node, settings, heard=heard, weighted=weighted)
            refused: dict[tuple[str, str], list[str]] = {}
            for client, outcome in read.outcomes.items():
                status, reason = "accepted", ""
                if isinstance(outcome, ReplyError):
                    status = "failed" if isinstance(outcome, FailedReplyError) else "quarantined"
                    reason = str(outcome)
                    counts["non_finite"] += isinstance(outcome, NonFiniteReplyError)
                    refused.setdefault((status, reason), []).append(client)
                elif fold is not None and read.total is None:
                    accepted[client] = fold.add(outcome)
                else:
                    accepted[client] = outcome
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
            if fold is not None and read.total is not None:
                fold.merge(read.total)
            for (status, reason), clients in refused.items():
                who = name_some(clients)
                logger.warning("round %d: %s (node %d) %s: %s", self.number, who, node, status, reason)
        missing = [client for client, node in self.clients.items() if node not in heard]
        if missing:
            logger.warning("round %d: no answer in time from %s", self.number, name_some(missing))
            emit("missing", round=self.number, phase=self.phase, clients=missing)
        ordered = sorted(accepted.values(), key=lambda reply: name_order(reply.client))
        return ordered, Tally(**counts, missing=missing)

    def require_quorum(self, tally: Tally, quorum: float) -> None:
        """Raise unless enough of the cohort was accepted.

        Raises
        ------
        QuorumError
            If fewer than ``quorum`` of the clients that were asked have a usable reply.
        DivergenceError
            If none has, and so many replies are not finite.
        """
        sampled, accepted = len(self.clients), tally.accepted
        needed = max(1, math.ceil(round(quorum * sampled, 9)))
        if accepted == 0 and tally.non_finite >= needed:
            raise DivergenceError(
                f"round {self.number}: {tally.non_finite} of {sampled} clients reply with NaN or infinite "
                "parameters and none with usable ones, so the model has diverged; lower the learning rate, "
                "or use a robust strategy if clients may be hostile."
            )
        if accepted < needed:
            raise QuorumError(
                f"round {self.number}: {accepted} of {sampled} replies are usable, but quorum={quorum:g} "
                f"needs {needed}; look at the quarantine reasons above, sample more nodes, or lower quorum."
            )

    def _read(
        self, message: Message, node: int, settings: Settings, *, heard: set[int], weighted: bool
    ) -> NodeReply:
        """Return what became of every client of the node; note that the node was heard."""
        clients = self._on.get(node, [])
        if not clients or node in heard:
            error = ReplyError("the node was not asked in this round, or answered before")
            # Not under the names of its clients: they have an outcome, which this must not replace.
            name = clients[0] if len(clients) == 1 and node not in self.hosts else f"node-{node}"
            return NodeReply(outcomes={name: error})
        heard.add(node)
        train = self.phase == "train"
        try:
            if node in self.hosts:
                return read_node_reply(
                    message,
                    Asked(
                        clients=clients,
                        form=self.form if train else None,
                        base=self.base,
                        layout=self.layout,
                        ranges=self._ranges,
                        settings=settings,
                        weighted=weighted,
                    ),
                )
            [client] = clients
            reply = read_reply(
                message,
                client,
                base=self.base if train else None,
                ranges=self._ranges,
                layout=self.layout,
                examples_key=settings.weighted_by_key,
                examples_required=weighted,
                max_num_examples=settings.max_num_examples,
            )
        except ReplyError as error:
            return NodeReply(outcomes=dict.fromkeys(clients, error))
        return NodeReply(outcomes={client: reply})


def next_attempt(last: Cohort | None, phase: Phase, number: int) -> int:
    """Return which attempt at the exchange begins now, counted from 1; ``last`` is the one before it."""
    return last.attempt + 1 if last and (last.phase, last.number) == (phase, number) else 1


def under_way(cohort: Cohort | None, phase: Phase, number: int, *, owner: str) -> Cohort:
    """Return ``cohort`` if it is that of round ``number``.

    Raises
    ------
    ConfigError
        If ``owner`` was not asked to configure this exchange, or has configured another one since.
    """
    if cohort is None or (cohort.phase, cohort.number) != (phase, number):
        raise ConfigError(
            f"{owner}: aggregate_{phase} of round {number} without configure_{phase} of "
            "the same round; the update is reply − global, so call configure first."
        )
    return cohort


def group_by_node(clients: dict[str, int]) -> dict[int, list[str]]:
    """Return node → its clients, both in order of first appearance."""
    nodes: dict[int, list[str]] = {}
    for client, node in clients.items():
        nodes.setdefault(node, []).append(client)
    return nodes
