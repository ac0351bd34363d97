"""One attempt's conversation with helpers: their keys, the clients' one message, the helpers' sums."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Unpack

from flwr.app import Message
from flwr.serverapp import Grid

from fl_plugins.additive_round import LAYER
from fl_plugins.errors import QuorumError, RoundAbortedError
from fl_plugins.secagg import AdditiveServerSession, SecureSum, Stage

from .exchange import exchange
from .secure_exchange import (
    ANSWER_ERRORS,
    ExchangeOptions,
    SecureExchange,
    by_sender,
    read_answer,
    suspects_in,
)

logger = logging.getLogger("flwr.fl_plugins")


class HelperExchange(SecureExchange):
    """The stages of one attempt at one round with helper nodes.

    Parameters
    ----------
    session : AdditiveServerSession
        The protocol, about to ask the helpers for their keys.
    helpers : Sequence[int]
        Their nodes.
    **options
        As in :class:`SecureExchange`.
    """

    def __init__(
        self, session: AdditiveServerSession, *, helpers: Sequence[int], **options: Unpack[ExchangeOptions]
    ) -> None:
        super().__init__(session, **options)
        self.threshold = session.parameters.min_clients
        self.facts = {"layer": LAYER, "helpers": list(helpers)}
        self._failed: RoundAbortedError | None = None

    def begin(self, grid: Grid) -> Mapping[int, bytes]:
        """Ask the helpers for their keys; return what goes to each client.

        That is nothing if not all answered: the attempt has failed then, as :meth:`run` will say.
        """
        try:
            self._ask_helpers(grid)
        except RoundAbortedError as error:
            self._failed = error
            return {}
        return self.session.requests()

    def run(self, grid: Grid, replies: Iterable[Message]) -> SecureSum:
        """Take the clients' messages, let the helpers open their set, and return the sum.

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
            self._ask_helpers(grid)
        except RoundAbortedError as error:
            # Whom a helper blames has sealed something that it cannot open: with it there is never a sum.
            self.blamed.update(dict.fromkeys(error.suspects, len(self.cohort.clients)))
            raise QuorumError(f"round {self.cohort.number}: {error}") from error
        for node in self.session.result.survivors:
            self._report(node, "accepted", "", stage=Stage.CLOSED)
        return self.session.result

    def _ask_helpers(self, grid: Grid) -> None:
        """Play one stage with the helpers."""
        stage, sent = self.session.stage, self._messages(len(self.cohort.clients))
        for node, reply in by_sender(sent, exchange(grid, sent, timeout_s=self._timeout_s)):
            try:
                self.session.receive(node, *read_answer(reply, stage, has_vector=stage is Stage.UNMASK))
            except ANSWER_ERRORS as error:
                self.session.refuse(node, str(error), suspects=suspects_in(str(error)))
                logger.warning("round %d: helper %d in stage %s: %s", self.cohort.number, node, stage, error)
        self.session.advance()
