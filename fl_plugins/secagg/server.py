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
from .answers import AskedNodes, SecureSum
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


class ServerSession(AskedNodes):
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
        super().__init__(parameters, Stage.ADVERTISE, asked)
        self._roster = roster
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

    def __repr__(self) -> str:
        p = self.parameters
        return f"ServerSession(round={p.round}, attempt={p.attempt}, stage={self.stage})"

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

    def _take(self, node: int, body: bytes, vector: NDArray[Any] | None) -> Any:
        if (vector is not None) is not (self.stage is Stage.MASK):
            raise MessageFormatError(f"secagg: node {node} sent a vector too many or too few.")
        take = {
            Stage.ADVERTISE: self._take_advert,
            Stage.SHARE: self._take_packets,
            Stage.CONFIRM: self._take_confirmation,
            Stage.UNMASK: self._take_shares,
        }
        return take[self.stage](node, body) if vector is None else self._take_masked(node, body, vector)

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

    def _finish(self) -> Stage:
        finish = {
            Stage.ADVERTISE: self._fix_adverts,
            Stage.SHARE: self._fix_packets,
            Stage.MASK: self._fix_survivors,
            Stage.CONFIRM: self._fix_signatures,
            Stage.UNMASK: self._fix_sum,
        }
        return finish[self.stage]()

    def _drop(self) -> None:
        self._sum = None

    def _need(self, least: int, what: str) -> tuple[int, ...]:
        """Return who answered, in ascending order, or abort and name those at fault."""
        return self._answered(least, f"{what} (stage {self.stage})", suspects=self._suspects)

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
