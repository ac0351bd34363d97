"""The server's half of additive sharing: it adds up masked vectors and subtracts what helpers opened.

The loop is :class:`fl_plugins.secagg.ServerSession`'s; only who is asked differs: helpers, clients, helpers.
A client that does not answer is left out and has cost nothing; without all helpers there is no sum.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    AdvertError,
    MessageFormatError,
    RoundAbortedError,
    SignatureError,
    StageError,
)
from .additive_messages import Attempt, ClientMessage, KeyAdvert, UnmaskRequest, check_tier
from .answers import AskedNodes, SecureSum
from .messages import Stage, check_identities
from .parameters import RoundParameters, Tier
from .prg import RING_DTYPES


class AdditiveServerSession(AskedNodes):
    """One attempt at one round.

    Parameters
    ----------
    parameters : RoundParameters
        Of the attempt; ``parameters.cohort`` is the number of clients.
    clients, helpers : Iterable[int]
        Node ids of who is asked.
    roster : frozenset[bytes] | None
        Malicious tier: the helpers' identities, so that others are refused here and not by every client.
    """

    def __init__(
        self,
        parameters: RoundParameters,
        clients: Iterable[int],
        helpers: Iterable[int],
        *,
        roster: frozenset[bytes] | None = None,
    ) -> None:
        super().__init__(parameters, Stage.ADVERTISE, helpers)
        self._clients, self._helpers = tuple(sorted(clients)), self._asked
        self._attempt = Attempt(parameters=parameters, cohort=self._clients)
        self._request = self._attempt.to_bytes()
        self._roster = roster
        self._owners: dict[bytes, int] = {}
        self._messages: dict[int, ClientMessage] = {}
        self._sum: NDArray[Any] | None = None

    def requests(self) -> Mapping[int, bytes]:
        """Return what to send to whom in this stage."""
        if self.stage is Stage.CLOSED:
            raise StageError("secagg: the session is closed; there is nothing to send.")
        if self.stage is Stage.UNMASK:
            return {helper: self._unmask_request(place) for place, helper in enumerate(self._helpers)}
        return dict.fromkeys(self._asked, self._request)

    def _unmask_request(self, place: int) -> bytes:
        packets = [
            (message.advert, message.packets[place][1]) for _, message in sorted(self._messages.items())
        ]
        return UnmaskRequest(attempt=self._request, packets=packets).to_bytes()

    def _take(self, node: int, body: bytes, vector: NDArray[Any] | None) -> Any:
        if self.stage is Stage.ADVERTISE:
            if vector is not None:
                raise MessageFormatError(f"secagg: node {node} sent a vector too many.")
            return self._take_key(node, body)
        dtype = RING_DTYPES[self.parameters.num_bits]
        if vector is None or vector.shape != (self.parameters.length,) or vector.dtype != dtype:
            sent = "nothing" if vector is None else f"shape {vector.shape} and dtype {vector.dtype}"
            raise MessageFormatError(
                f"secagg: node {node} sent {sent} as its vector, but ({self.parameters.length},) and "
                f"{dtype} were asked for."
            )
        if self.stage is Stage.UNMASK:
            if body:
                raise MessageFormatError(f"secagg: helper {node} sent bytes that nobody asked for.")
            return vector.copy()
        message = self._take_message(node, body)
        if self._sum is None:
            self._sum = vector.copy()
        else:
            np.add(self._sum, vector, out=self._sum)
        return message

    def _take_key(self, node: int, body: bytes) -> KeyAdvert:
        advert = KeyAdvert.from_bytes(body)
        self._check_own(node, advert)
        if self._roster is not None and self.parameters.tier is Tier.MALICIOUS:
            check_identities([advert], self._roster, self._attempt.context)
        return advert

    def _take_message(self, node: int, body: bytes) -> ClientMessage:
        message = ClientMessage.from_bytes(body)
        self._check_own(node, message.advert)
        if [helper for helper, _ in message.packets] != list(self._helpers):
            raise MessageFormatError(f"secagg: node {node}'s seeds are not for the helpers, one for each.")
        if self.parameters.tier is Tier.MALICIOUS:
            # Only a helper can tell which identities are in its roster; but a set with a key that is not
            # signed, or with one identity twice, would be refused whole.
            advert = message.advert
            check_identities([advert], frozenset({advert.identity}), self._attempt.transcript)
            if self._owners.setdefault(advert.identity, node) != node:
                other = self._owners[advert.identity]
                raise SignatureError(
                    f"secagg: nodes {other} and {node} have one identity.", suspects=[other, node]
                )
        return message

    def _check_own(self, node: int, advert: KeyAdvert) -> None:
        if advert.node != node:
            raise AdvertError(f"secagg: node {node} sent a key of node {advert.node}.", suspects=[node])
        check_tier(self.parameters, [advert])

    def _finish(self) -> Stage:
        finish = {
            Stage.ADVERTISE: self._fix_helpers,
            Stage.MASK: self._fix_clients,
            Stage.UNMASK: self._fix_sum,
        }
        return finish[self.stage]()

    def _drop(self) -> None:
        self._sum, self._messages = None, {}

    def _fix_helpers(self) -> Stage:
        self._need_helpers()
        adverts = tuple(self._answers[helper] for helper in self._helpers)
        self._attempt = Attempt(parameters=self.parameters, cohort=self._clients, adverts=adverts)
        self._request = self._attempt.to_bytes()
        self._asked = self._clients
        return Stage.MASK

    def _fix_clients(self) -> Stage:
        self._need_clients()
        self._messages = dict(self._answers)
        self._asked = self._helpers
        return Stage.UNMASK

    def _fix_sum(self) -> Stage:
        self._need_helpers()
        assert self._sum is not None
        for masks in self._answers.values():
            np.subtract(self._sum, masks, out=self._sum)
        self._result = SecureSum(
            vector=self._sum, survivors=tuple(sorted(self._messages)), dropped=(), wrong_shares=()
        )
        return Stage.CLOSED

    def _need_helpers(self) -> None:
        missing = [helper for helper in self._helpers if helper not in self._answers]
        if missing:
            reasons = "; ".join(f"{node}: {self.refusals.get(node, 'silent')}" for node in missing[:5])
            raise RoundAbortedError(
                f"secagg: {len(missing)} of {len(self._helpers)} helpers gave no answer (stage "
                f"{self.stage}), but without each of them there is no sum. {reasons}. Begin again with fresh "
                "keys.",
                suspects=self._suspects,
            )
