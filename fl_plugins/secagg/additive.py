"""Additive secret sharing over helper nodes: one message of a client, and no keys between clients.

Client i sends the server yᵢ = xᵢ + Σₕ G(sᵢₕ) modulo 2^b, and for each helper h the 256-bit seed sᵢₕ, sealed
for h alone. When the set U of clients whose messages came is fixed, helper h returns Σ_{i∈U} G(sᵢₕ), and the
server subtracts. The sums of Corrigan-Gibbs & Boneh, "Prio" (NSDI 2017), with seeds in the place of shares,
for servers that are SuperNodes.

The server learns the sum over the one set that *every honest helper* has opened: as long as one helper keeps
to the protocol and does not collude with the server, a mask stays on every other set. That helper opens one
set in an attempt, of at least as many clients as its own policy and the parameters that the clients saw want.

===========  =====================================  ====================================================
stage        server → node                          node → server
===========  =====================================  ====================================================
advertise    to helpers: parameters, cohort         a fresh X25519 key; malicious tier: signed
mask         to clients: the same, helpers' keys    yᵢ; a fresh key (signed), a sealed seed per helper
unmask       to helpers: the same, U's packets      Σ_{i∈U} G(sᵢₕ)
===========  =====================================  ====================================================

**Tiers.** ``honest-but-curious``: the server passes the keys on as they are. ``malicious``: helpers' keys are
signed by the identities in each *client's* roster, all of them and no other; clients' keys by identities in
each *helper's* roster. The server can then invent neither.
"""

from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import AdvertError, MessageFormatError, PolicyViolationError, StageError, SurvivorError
from .additive_messages import (
    Attempt,
    ClientMessage,
    KeyAdvert,
    UnmaskRequest,
    check_tier,
    is_ascending,
)
from .client import Reply
from .codec import Reader, Writer
from .keys import KEY_BYTES, Identity, agree, new_secret, pair_key
from .messages import Stage, check_identities
from .parameters import Progress, RoundParameters, Tier
from .policy import ClientPolicy
from .prg import RING_DTYPES, apply_masks
from .shares import open_secret, seal_secret

_STATE_VERSION = 1


def mask_for_helpers(
    request: bytes,
    vector: NDArray[Any],
    *,
    node: int,
    run_id: int,
    model: bytes,
    layout: bytes,
    policy: ClientPolicy,
    num_helpers: int,
    previous: Progress | None = None,
    identity: Identity | None = None,
) -> Reply:
    """Return a client's only message: its vector under one mask per helper, and the sealed seeds.

    Nothing is remembered: seeds and key are gone when this returns.

    Parameters
    ----------
    request : bytes
        The :class:`Attempt` as the server sent it.
    vector, node, run_id, model, layout, previous : NDArray, int, int, bytes, bytes, Progress | None
        As in :meth:`fl_plugins.secagg.ClientSession.begin`.
    policy : ClientPolicy
        The operator's; ``roster`` are the *helpers'* identities.
    num_helpers : int
        How many helpers were announced.
    identity : Identity | None
        For the malicious tier: what this node signs its key with.

    Raises
    ------
    SecureAggregationError
        Which one says what is wrong; nothing leaves the node then.
    """
    attempt = Attempt.from_bytes(request)
    parameters, transcript = attempt.parameters, attempt.transcript
    policy.check_begin(
        parameters, run_id=run_id, model=model, layout=layout, vector=vector, previous=previous
    )
    if node not in attempt.cohort:
        raise SurvivorError(f"secagg: node {node} is asked, but it is not in the cohort.")
    if len(attempt.adverts) != num_helpers:
        raise AdvertError(
            f"secagg: keys of {len(attempt.adverts)} helpers, but {num_helpers} were announced; with fewer, "
            "fewer would have to collude."
        )
    if parameters.tier is Tier.MALICIOUS:
        check_identities(attempt.adverts, policy.roster, attempt.context)
        if len(attempt.adverts) != len(policy.roster):
            raise AdvertError(
                f"secagg: {len(attempt.adverts)} of the {len(policy.roster)} helpers in this node's roster; "
                "all of them must take part, or the server could choose those that collude with it."
            )
    secret, packets, masks = new_secret(), {}, []
    advert = KeyAdvert.make(node, secret, transcript, _own(parameters, identity))
    for helper, shared in agree(secret, {a.node: a.key for a in attempt.adverts}).items():
        seed = new_secret()
        key = pair_key(shared, b"additive-seal", parameters.sid, (node, helper), transcript)
        packets[helper] = seal_secret(key, seed, sender=node, receiver=helper, transcript=transcript)
        masks.append(_mask_key(seed, attempt, transcript, client=node, helper=helper))
    masked = vector.copy()
    apply_masks(masked, masks, [])
    message = ClientMessage(advert=advert, packets=sorted(packets.items()))
    return Reply(body=message.to_bytes(), vector=masked)


class HelperSession:
    """One attempt on one helper: a key, then the sum of the masks of one set of clients.

    **Guarantees.** Whatever the server sends: one set is opened, once; of at least ``min_clients`` of the
    attempt and of this node's policy, all of the cohort that the key was made for; and only seeds that their
    clients sealed under the same parameters, cohort and helpers' keys. In the malicious tier moreover each
    client is another node of this helper's roster. An error closes the session and drops the key.
    """

    def __init__(
        self, attempt: Attempt, *, node: int, policy: ClientPolicy, secret: bytes, advert: bytes
    ) -> None:
        self.parameters, self.node, self.stage = attempt.parameters, node, Stage.UNMASK
        self._attempt, self._policy, self._secret, self._advert = attempt, policy, secret, advert

    def __repr__(self) -> str:
        p = self.parameters
        return f"HelperSession(node={self.node}, round={p.round}, attempt={p.attempt}, next={self.stage})"

    @classmethod
    def begin(
        cls,
        request: bytes,
        *,
        node: int,
        run_id: int,
        policy: ClientPolicy,
        previous: Progress | None = None,
        identity: Identity | None = None,
    ) -> tuple["HelperSession", Reply]:
        """Answer ``advertise`` with a fresh key.

        Parameters are as in :func:`mask_for_helpers`, but that ``policy.roster`` are the *clients'*
        identities.

        Raises
        ------
        SecureAggregationError
            If the attempt is malformed, forbidden, of another run, or not later than the last.
        """
        attempt = Attempt.from_bytes(request)
        parameters = attempt.parameters
        policy.check(parameters)
        if parameters.run_id != run_id:
            raise PolicyViolationError("secagg: the attempt is of another run; nothing was sent.")
        if previous is not None:
            previous.check_later(parameters)
        if attempt.adverts or node in attempt.cohort:
            raise MessageFormatError("secagg: a helper is asked first, and is no client of the same attempt.")
        secret = new_secret()
        advert = KeyAdvert.make(node, secret, attempt.context, _own(parameters, identity)).to_bytes()
        session = cls(attempt, node=node, policy=policy, secret=secret, advert=advert)
        return session, Reply(body=advert)

    def answer(self, stage: Stage, request: bytes) -> Reply:
        """Return the sum of the masks of one set of clients; the session is closed, whatever happens.

        Raises
        ------
        SecureAggregationError
            Which one says what is wrong, and whom it points at.
        """
        try:
            if stage is not self.stage or stage is Stage.CLOSED:
                raise StageError(
                    f"secagg: helper {self.node} was asked for stage {stage}, but {self.stage} is what it "
                    "answers next; one set of clients is opened, once. The session is closed."
                )
            return self._unmask(UnmaskRequest.from_bytes(request))
        finally:
            self.close()

    def close(self) -> None:
        """Drop the key."""
        self.stage, self._secret = Stage.CLOSED, b""

    def _unmask(self, request: UnmaskRequest) -> Reply:
        attempt, parameters = Attempt.from_bytes(request.attempt), self.parameters
        if replace(attempt, adverts=()) != self._attempt:
            raise PolicyViolationError("secagg: this is not the attempt that this helper made its key for.")
        if self._advert not in [advert.to_bytes() for advert in attempt.adverts]:
            raise AdvertError(f"secagg: helper {self.node}'s own key is not in the list as it was sent.")
        clients = [advert.node for advert, _ in request.packets]
        least = max(parameters.min_clients, self._policy.min_clients)
        if not is_ascending(clients) or not set(clients) <= set(attempt.cohort):
            raise SurvivorError("secagg: U must be distinct clients of the cohort, in ascending order.")
        if len(clients) < least:
            raise SurvivorError(f"secagg: U has {len(clients)} clients, but {least} are needed.")
        adverts, transcript = [advert for advert, _ in request.packets], attempt.transcript
        check_tier(parameters, adverts)
        if parameters.tier is Tier.MALICIOUS:
            check_identities(adverts, self._policy.roster, transcript)
        shared = agree(self._secret, {advert.node: advert.key for advert in adverts})
        masks = []
        for advert, packet in request.packets:
            client, pair = advert.node, (advert.node, self.node)
            key = pair_key(shared[client], b"additive-seal", parameters.sid, pair, transcript)
            seed = open_secret(key, packet, sender=client, receiver=self.node, transcript=transcript)
            masks.append(_mask_key(seed, attempt, transcript, client=client, helper=self.node))
        total = np.zeros(parameters.length, RING_DTYPES[parameters.num_bits])
        apply_masks(total, masks, [])
        return Reply(body=b"", vector=total)

    def to_bytes(self) -> bytes:
        """Return the session as bytes, the key included."""
        if self.stage is Stage.CLOSED:
            raise StageError("secagg: a closed session has nothing to save; delete what was saved of it.")
        writer = Writer().number(_STATE_VERSION, 1).number(self.node, 8).sized(self._attempt.to_bytes())
        return writer.fixed(self._secret, KEY_BYTES).sized(self._advert).done()

    @classmethod
    def from_bytes(cls, data: bytes, *, policy: ClientPolicy) -> Self:
        """Read what :meth:`to_bytes` wrote on this node; MessageFormatError if it is anything else."""
        reader = Reader(data, "a helper's saved session")
        if reader.number(1) != _STATE_VERSION:
            raise MessageFormatError("secagg: the saved session is of another version; begin a new round.")
        node, attempt = reader.number(8), Attempt.from_bytes(reader.sized())
        secret, advert = reader.fixed(KEY_BYTES), reader.sized()
        reader.done()
        return cls(attempt, node=node, policy=policy, secret=secret, advert=advert)


def _own(parameters: RoundParameters, identity: Identity | None) -> Identity | None:
    """Return the identity that the tier needs."""
    if parameters.tier is Tier.MALICIOUS and identity is None:
        raise PolicyViolationError("secagg: a malicious-tier round, but this node has no identity.")
    return identity if parameters.tier is Tier.MALICIOUS else None


def _mask_key(seed: bytes, attempt: Attempt, transcript: bytes, *, client: int, helper: int) -> bytes:
    """Return the key of the mask that a seed stands for: another in every attempt and for every pair."""
    return pair_key(seed, b"additive-mask", attempt.parameters.sid, (client, helper), transcript)
