"""One secure round's conversation: its stages as Flower messages, every answer judged on its own.

The protocol itself is :class:`fl_plugins.secagg.ServerSession`; here are messages, deadlines, and the account
of who dropped out in which stage, and why.
"""

import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypedDict

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl_plugins import wire
from fl_plugins.errors import (
    QuorumError,
    ReplyError,
    RoundAbortedError,
    SecureAggregationError,
    StructureError,
)
from fl_plugins.records import to_named
from fl_plugins.run_options import Emit
from fl_plugins.secagg import RoundParameters, SecureSum, Stage
from fl_plugins.secagg.graph import count_of
from fl_plugins.secure_round import STAGES

from .cohort import Cohort, Tally
from .exchange import exchange
from .replies import FailedReplyError, failed
from .roster import name_some

logger = logging.getLogger("flwr.fl_plugins")

ANSWER_ERRORS = (ReplyError, SecureAggregationError, StructureError)
"""What makes one node's answer unusable, and nothing else."""

_SUSPECTS = re.compile(r"\[suspects: ([\d, ]{1,2000})\]")


class RoundSession(Protocol):
    """The server's half of a protocol: who is asked what, and what their answers make."""

    parameters: RoundParameters
    stage: Stage

    @property
    def result(self) -> SecureSum: ...  # noqa: D102
    def requests(self) -> Mapping[int, bytes]: ...  # noqa: D102
    def receive(self, node: int, body: bytes, vector: NDArray[Any] | None = None) -> None: ...  # noqa: D102
    def refuse(self, node: int, reason: str, *, suspects: Iterable[int] = ()) -> None: ...  # noqa: D102
    def advance(self) -> None: ...  # noqa: D102


class ExchangeOptions(TypedDict):
    """What an exchange is given beside its session."""

    layer: str
    cohort: Cohort
    announced: Mapping[str, Any]
    config_key: str
    timeout_s: float
    emit: Emit


class SecureExchange:
    """The stages of one attempt at one round.

    Parameters
    ----------
    session : RoundSession
        The protocol, about to send its first stage.
    layer : str
        Name of the layer, for errors.
    cohort : Cohort
        Who was asked, with the messages of the first stage.
    announced : Mapping
        What of the config every message carries: round, schema, layers.
    config_key : str
        Key of the ConfigRecord in messages.
    timeout_s : float
        Deadline of each stage after the first.

    Attributes
    ----------
    dropped : dict
        Stage → the clients that were asked in it and gave no usable answer.
    blamed : Counter
        Node → how many clients say that it broke the protocol.
    facts : dict
        What else the run log says of the attempt.
    """

    def __init__(
        self,
        session: RoundSession,
        *,
        layer: str,
        cohort: Cohort,
        announced: Mapping[str, Any],
        config_key: str,
        timeout_s: float,
        emit: Emit,
    ) -> None:
        self.session, self.layer, self.cohort = session, layer, cohort
        self.dropped: dict[str, list[str]] = {}
        self.blamed: Counter[int] = Counter()
        self.threshold = 0
        self.facts: dict[str, Any] = {}
        self._announced, self._config_key, self._timeout_s = announced, config_key, timeout_s
        self._emit = emit
        self._names = {node: client for client, node in cohort.clients.items()}
        self._counts: Counter[str] = Counter()
        self._missing: list[str] = []

    @property
    def tally(self) -> Tally:
        """What became of the cohort so far: whoever has not dropped out is accepted."""
        counts = self._counts
        accepted = len(self._names) - counts.total() - len(self._missing)
        return Tally(
            accepted=accepted,
            quarantined=counts["quarantined"],
            failed=counts["failed"],
            missing=list(self._missing),
        )

    def run(self, grid: Grid, replies: Iterable[Message]) -> SecureSum:
        """Take the first stage's replies, play the others, and return the sum.

        Raises
        ------
        QuorumError
            If the attempt cannot give a sum; the next one needs fresh keys.
        """
        sent: Sequence[Message] = self.cohort.messages
        session = self.session
        try:
            while True:
                self._take(sent, replies)
                session.advance()
                if session.stage is Stage.CLOSED:
                    break
                sent = self._messages()
                if session.stage is Stage.SHARE:
                    self.threshold = session.parameters.topology(len(sent)).threshold
                replies = exchange(grid, sent, timeout_s=self._timeout_s)
        except RoundAbortedError as error:
            self.blamed.update(dict.fromkeys(error.suspects, len(self._names)))
            raise QuorumError(f"round {self.cohort.number}: {error}") from error
        for node in session.result.survivors:
            self._report(node, "accepted", "", stage=Stage.CLOSED)
        return session.result

    def proven_suspects(self) -> list[int]:
        """Return the nodes that more clients blame than may collude, or that the server itself found out."""
        colluding = count_of(self.session.parameters.corrupt, len(self._names))
        return sorted(
            node for node, count in self.blamed.items() if count > max(colluding, 1) and node in self._names
        )

    def _messages(self, cohort_size: int | None = None) -> list[Message]:
        """Return the present stage's messages: small, without a model."""
        requests = self.session.requests()
        facts = {
            **self._announced,
            wire.STAGE: STAGES.index(self.session.stage),
            wire.COHORT_SIZE: cohort_size or len(requests),
        }
        messages = []
        for node, body in requests.items():
            content = RecordDict(
                {self._config_key: ConfigRecord(facts), wire.SECAGG: ConfigRecord({wire.SECAGG_BODY: body})}
            )
            messages.append(Message(content, node, MessageType.TRAIN, group_id=str(self.cohort.number)))
        return messages

    def _take(self, sent: Sequence[Message], replies: Iterable[Message]) -> None:
        """Give the session every usable answer as it comes; whoever sends none has dropped out."""
        stage = self.session.stage
        outstanding = {message.metadata.dst_node_id for message in sent}
        for node, reply in by_sender(sent, replies):
            if node not in outstanding:
                logger.warning("round %d: node %d was not asked in stage %s", self.cohort.number, node, stage)
                continue
            outstanding.discard(node)
            try:
                answer = read_answer(reply, stage, has_vector=stage is Stage.MASK, layer=self.layer)
                self.session.receive(node, *answer)
            except ANSWER_ERRORS as error:
                self._drop(node, stage, error)
        if outstanding:
            clients = [client for node, client in self._names.items() if node in outstanding]
            self._missing += clients
            self.dropped.setdefault(stage, []).extend(clients)
            logger.warning(
                "round %d: no answer in time from %s (stage %s)",
                self.cohort.number,
                name_some(clients),
                stage,
            )
            self._emit(
                "missing", round=self.cohort.number, phase=self.cohort.phase, clients=clients, stage=stage
            )

    def _drop(self, node: int, stage: Stage, error: Exception) -> None:
        """Note that a node's answer is of no use, and whom it blames."""
        status = "failed" if isinstance(error, FailedReplyError) else "quarantined"
        self.session.refuse(node, str(error))
        if isinstance(error, FailedReplyError):
            self.blamed.update(suspects_in(str(error)))
        self._counts[status] += 1
        self.dropped.setdefault(stage, []).append(self._names[node])
        logger.warning(
            "round %d: client %s (node %d) %s in stage %s: %s",
            self.cohort.number,
            self._names[node],
            node,
            status,
            stage,
            error,
        )
        self._report(node, status, str(error), stage=stage)

    def _report(self, node: int, status: str, reason: str, *, stage: Stage) -> None:
        """Write what became of one client."""
        self._emit(
            "reply",
            round=self.cohort.number,
            phase=self.cohort.phase,
            client=self._names[node],
            node=node,
            seconds=round(time.monotonic() - self.cohort.started, 3),
            status=status,
            reason=reason,
            stage=stage,
        )


def by_sender(sent: Sequence[Message], replies: Iterable[Message]) -> Iterator[tuple[int, Message]]:
    """Yield each reply with the node that it is of: Flower's own error replies name the message only."""
    waiting: dict[str, int] = {}
    for reply in replies:
        if not waiting:  # messages have their ids once they are pushed
            waiting = {m.metadata.message_id: m.metadata.dst_node_id for m in sent}
        yield waiting.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id), reply


def suspects_in(reason: str) -> set[int]:
    """Return the nodes that a node's error reply blames."""
    found = _SUSPECTS.search(reason)
    return {int(suspect) for suspect in re.findall(r"\d+", found[1])} if found else set()


def read_answer(
    reply: Message, stage: Stage, *, has_vector: bool, layer: str
) -> tuple[bytes, NDArray[Any] | None]:
    """Return the bytes of one answer, and the vector where one is due.

    Raises
    ------
    ReplyError
        If it is an error reply, or anything but the records of this stage: what a client sends beside them is
        not looked at, let alone kept.
    """
    if reply.has_error():
        raise failed(reply.error.reason)
    content = reply.content
    record = content.get(wire.SECAGG)
    body = record.get(wire.SECAGG_BODY) if isinstance(record, ConfigRecord) else None
    arrays = list(content.array_records.values())
    if not isinstance(body, bytes) or len(content) != 1 + has_vector or len(arrays) != has_vector:
        raise ReplyError(
            f"{layer}: the reply of stage {stage} has the records {sorted(content)}, but it has "
            f"{wire.SECAGG} with bytes{' and one vector' if arrays else ''}; does the node run this layer?"
        )
    if not arrays:
        return body, None
    named = to_named(arrays[0])
    if list(named) != [wire.SECAGG_VECTOR]:
        raise ReplyError(
            f"{layer}: the reply has the arrays {sorted(named)}, but {wire.SECAGG_VECTOR} is due."
        )
    return body, named[wire.SECAGG_VECTOR]
