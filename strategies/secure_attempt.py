"""One attempt at a secure exchange: its stages, what the sum says, and what the run log says of it."""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from fl_plugins.errors import EncodingError, QuorumError
from fl_plugins.run_options import Emit
from fl_plugins.secagg import DecodedSum, SecureSum
from fl_plugins.secure_round import Encoding, SecureSettings

from .secure_exchange import SecureExchange

logger = logging.getLogger("flwr.fl_plugins")

_WARN_CLIPPED = 1e-3
"""Mean part of clipped entries from which on it is a warning: what is clipped is missing from the mean."""


@dataclass(frozen=True, kw_only=True)
class SecureAttempt:
    """An attempt under way.

    Parameters
    ----------
    conversation : SecureExchange
        Its stages.
    grid : Grid
        Where they are played.
    encoding : Encoding
        How the sum is read.
    settings : SecureSettings
        The layer's.
    emit : Emit
        Where events go.
    """

    conversation: SecureExchange
    grid: Grid
    encoding: Encoding
    settings: SecureSettings
    emit: Emit

    def finish(self, replies: Iterable[Message]) -> DecodedSum:
        """Take the first stage's replies, play the others, and return what the sum says.

        Raises
        ------
        QuorumError
            If too few clients are left, or what they sent does not fit together.
        """
        started = time.monotonic()
        try:
            total = self.conversation.run(self.grid, replies)
            decoded = self._decode(total)
        except QuorumError as error:
            self._report(started, None, None, str(error))
            raise
        self._report(started, total, decoded, "")
        return decoded

    def _decode(self, total: SecureSum) -> DecodedSum:
        """Read the sum; one that cannot be right ends the attempt."""
        try:
            return self.encoding.decode(total.vector, len(total.survivors))
        except EncodingError as error:
            raise QuorumError(f"round {self.conversation.cohort.number}: {error}") from error

    def _report(
        self, started: float, total: SecureSum | None, decoded: DecodedSum | None, reason: str
    ) -> None:
        """Write to the run log what an auditor asks for: the tier, the numbers, who dropped out where."""
        conversation, settings = self.conversation, self.settings
        cohort, clipped = conversation.cohort, None if decoded is None else decoded.clipped_fraction
        if clipped is not None and clipped > _WARN_CLIPPED:
            logger.warning(
                "round %d: %.2f %% of the update entries were beyond clip=%g and have been clipped; raise it",
                cohort.number,
                100 * clipped,
                settings.clip,
            )
        names = {node: client for client, node in cohort.clients.items()}
        self.emit(
            "secure_aggregation",
            round=cohort.number,
            phase=cohort.phase,
            attempt=cohort.attempt,
            layer=settings.layer,
            tier=settings.tier,
            num_bits=settings.num_bits,
            cohort=len(cohort.clients),
            threshold=conversation.threshold,
            survivors=0 if total is None else len(total.survivors),
            dropped={str(stage): clients for stage, clients in conversation.dropped.items()},
            wrong_shares=[] if total is None else [names[node] for node in total.wrong_shares],
            suspects=[names[node] for node in conversation.proven_suspects()],
            clipped_fraction=clipped,
            seconds=round(time.monotonic() - started, 3),
            reason=reason,
            **conversation.facts,
        )
