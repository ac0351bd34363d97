"""The server's half: it passes on what clients sent each other, sums what is masked, and takes the masks off.

One loop drives it, whatever carries the messages::

    session = ServerSession(parameters, nodes)
    while session.stage is not Stage.CLOSED:
        for node, body in session.requests().items():
            send(node, session.stage, body)
        for node, body, vector in replies_until_the_deadline():
            session.receive(node, body, vector)   # SecureAggregationError: treat as not answered
        session.advance()                          # RoundAbortedError: begin again with fresh parameters
    total = session.result

Whoever does not answer a stage, late or malformed included, has dropped out and is not asked again. The sum
is kept as it grows: memory is O(d), plus the packets of one stage.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    AdvertError,
    MessageFormatError,
    RoundAbortedError,
    SecureAggregationError,
    SignatureError,
    StageError,
)
from .codec import Writer
from .graph import Topology, count_of, neighbors, stays_connected
from .keys import point_of, signature_holds
from .messages import (
    Advert,
    MaskRequest,
    ShareRequest,
    Stage,
    UnmaskReply,
    UnmaskRequest,
    check_identities,
    confirmed_part,
    unpack_by_node,
)
from .parameters import RoundParameters, Tier
from .prg import RING_DTYPES
from .shares import PACKET_BYTES
from .unmasking import Opened, open_secrets, take_masks_off


@dataclass(frozen=True, kw_only=True)
class SecureSum:
    """The sum modulo 2^b of the survivors' vectors.

    Parameters
    ----------
    vector : NDArray
        ``(length,)`` ring words.
    survivors : tuple[int, ...]
        Whose vectors are in it (U3).
    dropped : tuple[int, ...]
        Who shared secrets, but sent no masked vector: their masks were reconstructed.
    wrong_shares : tuple[int, ...]
        Holders who sent wrong shares, which were found and left out. Certain if at most half the surplus over
        t lie; of more, some who plan together can make others look wrong.
    """

    vector: NDArray[Any] = field(repr=False)
    survivors: tuple[int, ...]
    dropped: tuple[int, ...]
    wrong_shares: tuple[int, ...]


class ServerSession:
    """One attempt at one round, from the adverts to the sum.

    Parameters
    ----------
    parameters : RoundParameters
        With a fresh ``sid``; two sessions never share one.
    nodes : Iterable[int]
        Whom to ask.
    roster : frozenset[bytes] | None
        In the malicious tier, to leave out early whom every client would refuse; None: let clients judge.

    Attributes
    ----------
    stage : Stage
        Which stage is being answered.
    refusals : dict[int, str]
        Why a node's answer, or the node itself by an error reply, was counted as dropped.
    """

    def __init__(
        self, parameters: RoundParameters, nodes: Iterable[int], *, roster: frozenset[bytes] | None = None
    ) -> None:
        asked = tuple(sorted(nodes))
        if len(set(asked)) != len(asked) or not asked or asked[0] < 1 or asked[-1] >= 1 << 64:
            raise AdvertError("secagg: the nodes to ask must be distinct ids from 1 to 2^64 − 1.")
        if len(asked) > parameters.cohort:
            raise AdvertError(
                f"secagg: {len(asked)} nodes, but the ring is sized for cohort={parameters.cohort}."
            )
        self.parameters, self.stage = parameters, Stage.ADVERTISE
        self.refusals: dict[int, str] = {}
        self._suspects: set[int] = set()
        self._roster = roster
        self._asked: tuple[int, ...] = asked
        self._answers: dict[int, Any] = {}
        self._adverts: dict[int, Advert] = {}
        self._keys_in_use: set[int] = set()
        self._graph: dict[int, tuple[int, ...]] = {}
        self._topology = Topology(degree=0, threshold=0)
        self._transcript = b""
        self._share_body = b""
        self._packets: dict[int, dict[int, bytes]] = {}
        self._shared: tuple[int, ...] = ()
        self._survivors: tuple[int, ...] = ()
        self._signatures: dict[int, bytes] = {}
        self._sum: NDArray[Any] | None = None
        self._result: SecureSum | None = None

    def __repr__(self) -> str:
        p = self.parameters
        return f"ServerSession(round={p.round}, attempt={p.attempt}, stage={self.stage})"

    @property
    def result(self) -> SecureSum:
        """The sum, once the stage is ``CLOSED``."""
        if self._result is None:
            raise StageError(f"secagg: there is no sum at stage {self.stage}; go on until it is closed.")
        return self._result

    def requests(self) -> Mapping[int, bytes]:
        """Return what to send to whom in this stage."""
        match self.stage:
            case Stage.ADVERTISE:
                return dict.fromkeys(self._asked, self.parameters.to_bytes())
            case Stage.SHARE:
                return dict.fromkeys(self._asked, self._share_body)
            case Stage.MASK:
                return {node: self._mask_request(node) for node in self._asked}
            case Stage.CONFIRM:
                return dict.fromkeys(self._asked, Writer().ids(self._survivors).done())
            case Stage.UNMASK:
                # As many as are needed: each costs every client a verification.
                signatures = sorted(self._signatures.items())[: self._topology.threshold]
                request = UnmaskRequest(survivors=self._survivors, signatures=signatures)
                return dict.fromkeys(self._asked, request.to_bytes())
        raise StageError("secagg: the session is closed; there is nothing to send.")

    def _mask_request(self, node: int) -> bytes:
        packets = [(peer, self._packets[peer][node]) for peer in self._graph[node] if peer in self._packets]
        return MaskRequest(nodes=self._shared, packets=packets).to_bytes()

    def receive(self, node: int, body: bytes, vector: NDArray[Any] | None = None) -> None:
        """Take one client's answer to the present stage.

        Raises
        ------
        SecureAggregationError
            If it is malformed, a second one, or of a node that was not asked; the node counts as dropped
            unless a good answer of it is already there.
        """
        try:
            self._receive(node, body, vector)
        except SecureAggregationError as error:
            self.refuse(node, str(error))
            raise

    def refuse(self, node: int, reason: str, *, suspects: Iterable[int] = ()) -> None:
        """Note that a node did not answer, and whom it blames; it counts as dropped without this call too."""
        if node not in self._answers:
            self.refusals[node] = reason
        self._suspects.update(suspects)

    def _receive(self, node: int, body: bytes, vector: NDArray[Any] | None) -> None:
        if node not in self._asked or node in self._answers or self.stage is Stage.CLOSED:
            raise StageError(
                f"secagg: node {node} was not asked for stage {self.stage}, or answers it twice."
            )
        if (vector is not None) is not (self.stage is Stage.MASK):
            raise MessageFormatError(f"secagg: node {node} sent a vector too many or too few.")
        take = {
            Stage.ADVERTISE: self._take_advert,
            Stage.SHARE: self._take_packets,
            Stage.CONFIRM: self._take_confirmation,
            Stage.UNMASK: self._take_shares,
        }
        if vector is not None:
            self._answers[node] = self._take_masked(node, body, vector)
        else:
            self._answers[node] = take[self.stage](node, body)

    def _take_advert(self, node: int, body: bytes) -> Advert:
        advert = Advert.from_bytes(body)
        if advert.node != node:
            raise AdvertError(f"secagg: node {node} advertised keys for node {advert.node}.", suspects=[node])
        if bool(advert.identity) is not (self.parameters.tier is Tier.MALICIOUS):
            raise AdvertError(f"secagg: the advert of node {node} is of another tier.", suspects=[node])
        if self._roster is not None and self.parameters.tier is Tier.MALICIOUS:
            check_identities([advert], self._roster, self.parameters.context)
        # One key in two adverts, and every client refuses the list: the first who sent it stays.
        keys = {point_of(advert.packet_key), point_of(advert.mask_key)}
        if keys & self._keys_in_use or len(keys) < 2:
            raise AdvertError(f"secagg: node {node} advertised a key that is in use.", suspects=[node])
        self._keys_in_use |= keys
        return advert

    def _take_packets(self, node: int, body: bytes) -> dict[int, bytes]:
        packets = unpack_by_node(body, PACKET_BYTES, "a share reply")
        if tuple(receiver for receiver, _ in packets) != self._graph[node]:
            raise MessageFormatError(
                f"secagg: node {node}'s packets are not for its neighbors, one for each."
            )
        return dict(packets)

    def _take_masked(self, node: int, body: bytes, vector: NDArray[Any]) -> bool:
        dtype = RING_DTYPES[self.parameters.num_bits]
        if body or vector.shape != (self.parameters.length,) or vector.dtype != dtype:
            raise MessageFormatError(
                f"secagg: node {node}'s masked vector has shape {vector.shape} and dtype {vector.dtype}, but "
                f"({self.parameters.length},) and {dtype} were asked for."
            )
        if self._sum is None:
            self._sum = vector.copy()
        else:
            np.add(self._sum, vector, out=self._sum)
        return True

    def _take_confirmation(self, node: int, body: bytes) -> bytes:
        signed = confirmed_part(self._transcript, self._shared, self._survivors)
        if not signature_holds(self._adverts[node].identity, body, signed):
            raise SignatureError(f"secagg: node {node} did not sign the survivors.", suspects=[node])
        return body

    def _take_shares(self, node: int, body: bytes) -> UnmaskReply:
        reply = UnmaskReply.from_bytes(body)
        owners = set(self._graph[node]) & set(self._shared)
        alive = set(self._survivors)
        if set(reply.seed_shares) != (owners & alive) | {node} or set(reply.key_shares) != owners - alive:
            raise MessageFormatError(f"secagg: node {node}'s shares are not those that were asked for.")
        return reply

    def advance(self) -> None:
        """End the stage with the answers that are there.

        Raises
        ------
        RoundAbortedError
            If they are too few, or the secrets cannot be reconstructed; ``suspects`` names who is at fault as
            far as that can be told. The session is closed.
        """
        finish = {
            Stage.ADVERTISE: self._fix_adverts,
            Stage.SHARE: self._fix_packets,
            Stage.MASK: self._fix_survivors,
            Stage.CONFIRM: self._fix_signatures,
            Stage.UNMASK: self._fix_sum,
        }
        if self.stage is Stage.CLOSED:
            raise StageError("secagg: the session is closed.")
        try:
            self.stage = finish[self.stage]()
        except RoundAbortedError:
            self.stage = Stage.CLOSED
            self._sum = None
            raise
        finally:
            self._answers = {}

    def _need(self, least: int, what: str) -> tuple[int, ...]:
        """Return who answered, in ascending order, or abort."""
        answered = tuple(sorted(self._answers))
        if len(answered) < least:
            reasons = "; ".join(f"{node}: {why}" for node, why in sorted(self.refusals.items())[:5])
            raise RoundAbortedError(
                f"secagg: {len(answered)} of {len(self._asked)} nodes {what} (stage {self.stage}), "
                f"but {least} are needed. Refusals: {reasons or 'none'}. Begin again with fresh keys, "
                "ask more nodes or wait longer.",
                suspects=self._suspects,
            )
        return answered

    @property
    def _least(self) -> int:
        complete = self._topology.is_complete(len(self._adverts))
        return max(self.parameters.min_clients, self._topology.threshold if complete else 0)

    def _fix_adverts(self) -> Stage:
        nodes = self._need(self.parameters.min_clients, "advertised keys")
        self._topology = self.parameters.topology(len(nodes))
        self._adverts = {node: self._answers[node] for node in nodes}
        self._need(max(self._least, self._topology.threshold), "advertised keys")
        request = ShareRequest(
            topology=self._topology, adverts=tuple(advert.to_bytes() for advert in self._adverts.values())
        )
        self._share_body = request.to_bytes()
        self._transcript = request.transcript(self.parameters.context)
        self._graph = {node: neighbors(nodes, node, self._topology, self._transcript) for node in nodes}
        self._asked = nodes
        return Stage.SHARE

    def _fix_packets(self) -> Stage:
        self._shared = self._asked = self._need(self._least, "shared secrets")
        self._packets = dict(self._answers)
        return Stage.MASK

    def _fix_survivors(self) -> Stage:
        self._survivors = self._asked = self._need(self._least, "sent a masked vector")
        self._packets = {}
        n, degree = len(self._adverts), self._topology.degree
        dropped = n - len(self._survivors)
        if not stays_connected(n, degree, dropped + count_of(self.parameters.corrupt, n)):
            raise RoundAbortedError(
                f"secagg: {dropped} of {n} nodes dropped out, but with "
                f"dropout={self.parameters.dropout:g} and corrupt={self.parameters.corrupt:g} the "
                f"graph's degree is {degree}, and it may fall apart; no client unmasks that. Begin "
                "again with a higher dropout."
            )
        return Stage.CONFIRM if self.parameters.tier is Tier.MALICIOUS else Stage.UNMASK

    def _fix_signatures(self) -> Stage:
        # Whoever signed, is asked to unmask; the sum is that of all survivors still.
        self._asked = self._need(self._topology.threshold, "confirmed the survivors")
        self._signatures = dict(self._answers)
        return Stage.UNMASK

    def _fix_sum(self) -> Stage:
        self._need(self._topology.threshold, "sent shares")
        assert self._sum is not None
        opened = self._open()
        take_masks_off(
            self._sum, self.parameters, opened, self._survivors, self._graph, self._adverts, self._transcript
        )
        self._result = SecureSum(
            vector=self._sum,
            survivors=self._survivors,
            dropped=tuple(sorted(opened.keys)),
            wrong_shares=opened.wrong_shares,
        )
        self._sum = None
        return Stage.CLOSED

    def _open(self) -> Opened:
        survivors = set(self._survivors)
        return open_secrets(
            self._answers,
            alive=self._survivors,
            dead=[n for n in self._shared if n not in survivors],
            threshold=self._topology.threshold,
            adverts=self._adverts,
            context=self.parameters.context,
        )
