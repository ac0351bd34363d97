"""Conversations in which clients send one message each, and others then open the sum of what they sent."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Unpack

from flwr.app import Message
from flwr.serverapp import Grid

from fl_plugins.errors import QuorumError, RoundAbortedError
from fl_plugins.secagg import SecureSum, Stage

from .exchange import exchange
from .secure_exchange import (
    ANSWER_ERRORS,
    ExchangeOptions,
    RoundSession,
    SecureExchange,
    by_sender,
    read_answer,
    suspects_in,
)

logger = logging.getLogger("flwr.fl_plugins")


class OpeningExchange(SecureExchange):
    """The stages of one attempt at one round, of which clients are asked in one.

    Parameters
    ----------
    session : RoundSession
        The protocol.
    facts : Mapping
        What the run log says of the attempt beside the usual.
    **options
        As in :class:`SecureExchange`.
    """

    def __init__(
        self, session: RoundSession, *, facts: Mapping[str, Any], **options: Unpack[ExchangeOptions]
    ) -> None:
        super().__init__(session, **options)
        self.threshold = session.parameters.min_clients
        self.facts = dict(facts)
        self._failed: RoundAbortedError | None = None

    def begin(self, grid: Grid) -> Mapping[int, bytes]:
        """Play the stage before the clients', and return what goes to each client.

        That is nothing if the stage failed: :meth:`run` will say why.
        """
        try:
            self._ask(grid)
        except RoundAbortedError as error:
            self._failed = error
            return {}
        return self.session.requests()

    def run(self, grid: Grid, replies: Iterable[Message]) -> SecureSum:
        """Take the clients' messages, have their sum opened, and return it.

        Raises
        ------
        QuorumError
            If the attempt cannot give a sum; the next one needs fresh keys.
        """
        try:
            if self._failed is not None:
                raise self._failed
            self._take(self.cohort.messages, replies)
            self.session.advance()
            while self.session.stage is not Stage.CLOSED:
                self._ask(grid)
        except RoundAbortedError as error:
            # Whom a helper blames has sealed something that it cannot open: with it there is never a sum.
            self.blamed.update(dict.fromkeys(error.suspects, len(self.cohort.clients)))
            raise QuorumError(f"round {self.cohort.number}: {error}") from error
        for node in self.session.result.survivors:
            self._report(node, "accepted", "", stage=Stage.CLOSED)
        return self.session.result

    def _ask(self, grid: Grid) -> None:
        """Play one stage with the nodes that open, or prepare to."""
        stage, sent = self.session.stage, self._messages(len(self.cohort.clients))
        for node, reply in by_sender(sent, exchange(grid, sent, timeout_s=self._timeout_s)):
            try:
                answer = read_answer(reply, stage, has_vector=stage is Stage.UNMASK, layer=self.layer)
                self.session.receive(node, *answer)
            except ANSWER_ERRORS as error:
                self.session.refuse(node, str(error), suspects=suspects_in(str(error)))
                logger.warning("round %d: node %d in stage %s: %s", self.cohort.number, node, stage, error)
        self.session.advance()
