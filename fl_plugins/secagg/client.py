"""The client's half of the protocol: one answer per stage, or a refusal after which it knows nothing.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning" (CCS 2017), figure 4,
with the graph of Bell et al. (CCS 2020). The node never trusts what it is told: its own policy, its own
record of the last attempt, its own digest of the model and its own advert decide.

A deployed node serves every message in a fresh process, so a session is saved between stages
(:meth:`ClientSession.to_bytes`). What was saved is as secret as the update: keep it in the node's own state,
and delete it when the stage is ``CLOSED``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from numpy.typing import NDArray

from ..errors import (
    AdvertError,
    MessageFormatError,
    PacketError,
    PolicyViolationError,
    SignatureError,
    StageError,
    SurvivorError,
)
from .codec import Reader, Writer
from .graph import count_of, neighbors, stays_connected
from .keys import (
    Identity,
    agree,
    commitment,
    new_secret,
    own_key,
    pair_key,
    point_of,
    public_key,
    signature_holds,
)
from .memory import Memory
from .messages import (
    Advert,
    MaskRequest,
    ShareRequest,
    Stage,
    UnmaskReply,
    UnmaskRequest,
    check_identities,
    confirmed_part,
    pack_by_node,
)
from .parameters import Progress, RoundParameters, Tier
from .policy import ClientPolicy
from .prg import apply_masks
from .shamir import split
from .shares import PACKET_BYTES, open_packet, seal

_STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a client sends: the stage's bytes, and the masked vector in the mask stage."""

    body: bytes
    vector: NDArray[Any] | None = field(default=None, repr=False)


class ClientSession:
    """One attempt at one round on one node.

    **Guarantees.** Whatever the server sends: a stage is answered once and in order; of another node one
    of two secrets is given away, never both; the vector leaves only masked. In the malicious tier moreover:
    the vector leaves only with masks against at least t nodes of the roster, and no two sets of survivors can
    both be unmasked while at most 2t − n − 1 nodes collude.

    Every method that answers a stage raises a ``SecureAggregationError`` if something is wrong, and then the
    session is closed and its secrets are dropped (as far as Python lets go of memory).
    """

    def __init__(
        self,
        parameters: RoundParameters,
        *,
        node: int,
        policy: ClientPolicy,
        identity: Identity | None,
        stage: Stage,
        memory: Memory,
    ) -> None:
        self.parameters, self.node, self.stage = parameters, node, stage
        self._policy, self._identity, self._memory = policy, identity, memory

    def __repr__(self) -> str:
        p = self.parameters
        return f"ClientSession(node={self.node}, round={p.round}, attempt={p.attempt}, next={self.stage})"

    @classmethod
    def begin(
        cls,
        request: bytes,
        vector: NDArray[Any],
        *,
        node: int,
        run_id: int,
        model: bytes,
        layout: bytes,
        policy: ClientPolicy,
        previous: Progress | None = None,
        identity: Identity | None = None,
    ) -> tuple["ClientSession", Reply]:
        """Answer ``advertise`` with fresh keys; the vector waits in the session.

        Parameters
        ----------
        request : bytes
            The round's parameters as the server sent them.
        vector : NDArray
            ``(length,)`` ring words: what to sum, from :mod:`~fl_plugins.secagg.fixed_point`.
        node, run_id : int
            This node's id and run as the node itself knows them, not as the message claims.
        model, layout : bytes
            Hashes of the global parameters that arrived here, and of what the vector holds.
        policy : ClientPolicy
            The operator's.
        previous : Progress | None
            The last attempt that this node began; save ``Progress.of(session.parameters)`` for the next.
        identity : Identity | None
            For the malicious tier.

        Raises
        ------
        PolicyViolationError
            If parameters are forbidden, or are not those of the node's own model, layout and run.
        StageError
            If the node has begun this attempt or a later one before.
        MessageFormatError
            If the request or the vector is malformed.
        """
        parameters = RoundParameters.from_bytes(request)
        policy.check_begin(
            parameters, run_id=run_id, model=model, layout=layout, vector=vector, previous=previous
        )
        memory = Memory(
            packet_secret=new_secret(), mask_secret=new_secret(), seed=new_secret(), vector=vector.copy()
        )
        advert = Advert(
            node=node,
            packet_key=public_key(memory.packet_secret),
            mask_key=public_key(memory.mask_secret),
            commitment=commitment(memory.seed, parameters.context),
        )
        if parameters.tier is Tier.MALICIOUS:
            if identity is None or identity.public not in policy.roster:
                raise PolicyViolationError(
                    "secagg: a malicious-tier round, but this node has no identity that its roster lists; "
                    "give it one."
                )
            advert = advert.signed_by(identity, parameters.context)
        memory.advert = advert.to_bytes()
        session = cls(
            parameters, node=node, policy=policy, identity=identity, stage=Stage.SHARE, memory=memory
        )
        return session, Reply(body=memory.advert)

    def answer(self, stage: Stage, request: bytes) -> Reply:
        """Answer any stage after ``advertise``, or raise and be closed.

        Raises
        ------
        SecureAggregationError
            Which one says what is wrong.
        """
        work = {
            Stage.SHARE: self._share,
            Stage.MASK: self._mask,
            Stage.CONFIRM: self._confirm,
            Stage.UNMASK: self._unmask,
        }
        try:
            if stage is not self.stage or stage not in work:
                raise StageError(
                    f"secagg: node {self.node} was asked for stage {stage}, but {self.stage} is what it "
                    "answers next; a stage is answered once and in order. The session is closed."
                )
            reply = work[stage](request)
        except BaseException:
            self.close()
            raise
        if self.stage is Stage.CLOSED:
            self.close()
        return reply

    def close(self) -> None:
        """Drop everything that the session knows."""
        if self._memory.vector is not None:
            self._memory.vector.fill(0)
        self.stage, self._memory = Stage.CLOSED, Memory()

    def _share(self, data: bytes) -> Reply:
        memory, parameters = self._memory, self.parameters
        request = ShareRequest.from_bytes(data)
        adverts = [Advert.from_bytes(item) for item in request.adverts]
        self._check_adverts(request, adverts)
        memory.transcript = request.transcript(parameters.context)
        memory.degree, memory.threshold = request.topology.degree, request.topology.threshold
        memory.nodes = {advert.node: advert.identity for advert in adverts}
        by_node = {advert.node: advert for advert in adverts}
        peers = neighbors(list(by_node), self.node, request.topology, memory.transcript)
        packet_keys = {peer: by_node[peer].packet_key for peer in peers}
        for peer, shared in agree(memory.packet_secret, packet_keys).items():
            key = pair_key(shared, b"share", parameters.sid, (self.node, peer), memory.transcript)
            memory.peers[peer] = (key, by_node[peer].mask_key)
        memory.packet_secret = b""
        holders = [*peers, self.node]
        seed_shares = split(memory.seed, memory.threshold, holders)
        key_shares = split(memory.mask_secret, memory.threshold, list(peers))
        memory.own_share = seed_shares.pop()
        packets = {
            peer: seal(
                memory.peers[peer][0],
                pair,
                sender=self.node,
                receiver=peer,
                transcript=memory.transcript,
            )
            for peer, pair in zip(peers, zip(seed_shares, key_shares, strict=True), strict=True)
        }
        self.stage = Stage.MASK
        return Reply(body=pack_by_node(packets, PACKET_BYTES))

    def _check_adverts(self, request: ShareRequest, adverts: Sequence[Advert]) -> None:
        """Check U1: complete, everyone once, every key once, my own as I sent it, everybody in the roster."""
        nodes = [advert.node for advert in adverts]
        self._policy.check_topology(self.parameters, request.topology, len(nodes))
        keys = [point_of(key) for advert in adverts for key in (advert.packet_key, advert.mask_key)]
        if nodes != sorted(set(nodes)) or 0 in nodes:
            raise AdvertError("secagg: the adverts are not those of distinct nodes in ascending order.")
        if len(set(keys)) != len(keys):
            twice = {key for key in keys if keys.count(key) > 1}
            raise AdvertError(
                "secagg: a public key was advertised twice, by the nodes named as suspects.",
                suspects=[a.node for a in adverts if twice & {point_of(a.packet_key), point_of(a.mask_key)}],
            )
        if request.adverts.count(self._memory.advert) != 1 or self.node not in nodes:
            raise AdvertError(f"secagg: node {self.node}'s own advert is not in the list as it was sent.")
        for advert in adverts:
            malicious_tier = self.parameters.tier is Tier.MALICIOUS
            if bool(advert.identity) is not malicious_tier:
                raise AdvertError(
                    f"secagg: the advert of node {advert.node} is of another tier.", suspects=[advert.node]
                )
        if self.parameters.tier is Tier.MALICIOUS:
            check_identities(adverts, self._policy.roster, self.parameters.context)

    def _mask(self, data: bytes) -> Reply:
        memory, parameters = self._memory, self.parameters
        request = MaskRequest.from_bytes(data)
        shared = self._subset(request.nodes, memory.nodes, "U2, which shared secrets,")
        senders = [sender for sender, _ in request.packets]
        expected = set(memory.peers) & set(shared)
        if len(senders) != len(set(senders)) or set(senders) != expected:
            raise PacketError(
                f"secagg: packets of {len(senders)} nodes, but one of each of this node's {len(expected)} "
                "neighbors in U2 was to come."
            )
        if len(senders) + 1 < memory.threshold:
            raise SurvivorError(
                f"secagg: {len(senders)} neighbors shared secrets, but {memory.threshold - 1} are needed."
            )
        for sender, packet in request.packets:
            memory.shares[sender] = open_packet(
                memory.peers[sender][0],
                packet,
                sender=sender,
                receiver=self.node,
                transcript=memory.transcript,
            )
        added = [own_key(memory.seed, parameters.sid, self.node, memory.transcript)]
        subtracted: list[bytes] = []
        mask_keys = {sender: memory.peers[sender][1] for sender in senders}
        for peer, secret in agree(memory.mask_secret, mask_keys).items():
            key = pair_key(secret, b"mask", parameters.sid, (self.node, peer), memory.transcript)
            (added if self.node < peer else subtracted).append(key)
        vector = memory.vector
        assert vector is not None
        apply_masks(vector, added, subtracted)
        # From here on nothing but the masked vector exists: what unmasking needs are the others' shares.
        memory.vector, memory.mask_secret, memory.seed, memory.peers = None, b"", b"", {}
        memory.shared = shared
        self.stage = Stage.CONFIRM if parameters.tier is Tier.MALICIOUS else Stage.UNMASK
        return Reply(body=b"", vector=vector)

    def _confirm(self, data: bytes) -> Reply:
        reader = Reader(data, "a confirm request")
        survivors = self._check_survivors(reader.ids())
        reader.done()
        self._memory.survivors = survivors
        if self._identity is None:
            raise PolicyViolationError("secagg: the session was restored without its identity; give it.")
        self.stage = Stage.UNMASK
        signed = confirmed_part(self._memory.transcript, self._memory.shared, survivors)
        return Reply(body=self._identity.sign(signed))

    def _unmask(self, data: bytes) -> Reply:
        memory = self._memory
        request = UnmaskRequest.from_bytes(data)
        survivors = self._check_survivors(request.survivors)
        if self.parameters.tier is Tier.MALICIOUS:
            self._check_confirmed(survivors, request.signatures)
        seeds = {owner: pair[0] for owner, pair in memory.shares.items() if owner in survivors}
        keys = {owner: pair[1] for owner, pair in memory.shares.items() if owner not in survivors}
        reply = UnmaskReply(seed_shares={**seeds, self.node: memory.own_share}, key_shares=keys)
        self.stage = Stage.CLOSED
        return Reply(body=reply.to_bytes())

    def _check_confirmed(self, survivors: tuple[int, ...], signatures: Sequence[tuple[int, bytes]]) -> None:
        """Check that t nodes signed the U3 that I signed."""
        memory = self._memory
        if survivors != memory.survivors:
            raise SurvivorError("secagg: these are not the survivors that this node confirmed.")
        signed = confirmed_part(memory.transcript, memory.shared, survivors)
        signers = [signer for signer, _ in signatures]
        if len(set(signers)) != len(signers) or not set(signers) <= set(survivors):
            raise SignatureError("secagg: confirmations of nodes that do not survive, or two of one node.")
        if len(signers) < memory.threshold:
            raise SignatureError(f"secagg: {len(signers)} confirmations, but {memory.threshold} are needed.")
        for signer, signature in signatures:
            if not signature_holds(memory.nodes[signer], signature, signed):
                raise SignatureError(
                    f"secagg: node {signer} did not sign this set of survivors.", suspects=[signer]
                )

    def _check_survivors(self, nodes: Sequence[int]) -> tuple[int, ...]:
        survivors = self._subset(nodes, self._memory.shared, "U3, the survivors,")
        memory, num_nodes = self._memory, len(self._memory.nodes)
        removed = num_nodes - len(survivors) + count_of(self._policy.corrupt, num_nodes)
        if not stays_connected(num_nodes, memory.degree, removed):
            raise SurvivorError(
                f"secagg: {num_nodes - len(survivors)} of {num_nodes} nodes dropped out, so many that "
                f"a graph of degree {memory.degree} may fall apart, and the server would see the sums "
                "of the parts."
            )
        return survivors

    def _subset(self, nodes: Sequence[int], of: Any, what: str) -> tuple[int, ...]:
        """Check a set of nodes: distinct, a subset, with me, and large enough."""
        least = max(self._memory.threshold, self.parameters.min_clients, self._policy.min_clients)
        if list(nodes) != sorted(set(nodes)) or not set(nodes) <= set(of):
            raise SurvivorError(
                f"secagg: {what} must be distinct nodes in ascending order, of those that came this far."
            )
        if self.node not in nodes:
            raise SurvivorError(f"secagg: {what} must contain node {self.node}, which is asked.")
        if len(nodes) < least:
            raise SurvivorError(f"secagg: {what} has {len(nodes)} nodes, but {least} are needed.")
        return tuple(nodes)

    def to_bytes(self) -> bytes:
        """Return the session as bytes, secrets included; keep them where the update itself may be."""
        if self.stage is Stage.CLOSED:
            raise StageError("secagg: a closed session has nothing to save; delete what was saved of it.")
        writer = Writer().number(_STATE_VERSION, 1).sized(self.stage.encode()).number(self.node, 8)
        writer.sized(self.parameters.to_bytes())
        self._memory.write(writer)
        return writer.done()

    @classmethod
    def from_bytes(cls, data: bytes, *, policy: ClientPolicy, identity: Identity | None = None) -> Self:
        """Read what :meth:`to_bytes` wrote on this node.

        Raises
        ------
        MessageFormatError
            If it is damaged or of another version.
        """
        reader = Reader(data, "a saved session")
        if reader.number(1) != _STATE_VERSION:
            raise MessageFormatError("secagg: the saved session is of another version; begin a new round.")
        name, node = reader.sized().decode("ascii", "replace"), reader.number(8)
        if name not in {Stage.SHARE, Stage.MASK, Stage.CONFIRM, Stage.UNMASK}:
            raise MessageFormatError("secagg: the saved session is at no stage; begin a new round.")
        parameters = RoundParameters.from_bytes(reader.sized())
        memory = Memory.read(reader, parameters.num_bits)
        reader.done()
        return cls(parameters, node=node, policy=policy, identity=identity, stage=Stage(name), memory=memory)
