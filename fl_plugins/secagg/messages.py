"""The protocol's messages: one byte string each way per stage, and a vector of ring words in one of them.

===========  =======================================  ==========================================
stage        server → client                          client → server
===========  =======================================  ==========================================
advertise    parameters                               advert: two public keys, a commitment
share        topology, adverts of U1                  one sealed packet per neighbor
mask         ids of U2, packets for this client       the masked vector; the body is empty
confirm      ids of U3 (malicious tier only)          a signature over what the client saw
unmask       ids of U3, signatures                    one share of each neighbor, and of itself
===========  =======================================  ==========================================

U1 ⊇ U2 ⊇ U3: the nodes that advertised, that sent packets, whose masked vectors are in the sum.
"""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

from ..errors import MessageFormatError, SignatureError
from .codec import Reader, Writer
from .graph import Topology
from .keys import KEY_BYTES, SIGNATURE_BYTES, Identity, signature_holds, tagged_hash
from .shamir import SHARE_BYTES
from .shares import PACKET_BYTES


class Stage(enum.StrEnum):
    """The stages, in their order; a value is what names a stage on the wire."""

    ADVERTISE = "advertise"
    SHARE = "share"
    MASK = "mask"
    CONFIRM = "confirm"
    UNMASK = "unmask"
    CLOSED = "closed"
    """Nothing is answered any more, and nothing is remembered."""


def write_signature(writer: Writer, identity: bytes, signature: bytes) -> Writer:
    """Append who signed and the signature; both are empty in the honest-but-curious tier."""
    writer.number(bool(identity), 1)
    return writer.fixed(identity, KEY_BYTES).fixed(signature, SIGNATURE_BYTES) if identity else writer


def read_signature(reader: Reader) -> tuple[bytes, bytes]:
    """Read what :func:`write_signature` wrote."""
    signed = reader.number(1)
    if signed > 1:
        raise MessageFormatError(f"secagg: an advert says {signed} where 0 or 1 is meant; it is damaged.")
    return (reader.fixed(KEY_BYTES), reader.fixed(SIGNATURE_BYTES)) if signed else (b"", b"")


@dataclass(frozen=True, kw_only=True)
class Advert:
    """A node's public keys for one attempt.

    ``identity`` and ``signature`` are empty in the honest-but-curious tier.
    """

    node: int
    packet_key: bytes
    mask_key: bytes
    commitment: bytes
    identity: bytes = b""
    signature: bytes = b""

    def signed_part(self, context: bytes) -> bytes:
        """Return what the signature is over."""
        keys = self.packet_key + self.mask_key + self.commitment
        return tagged_hash(b"advert", context, self.node.to_bytes(8, "big"), keys, self.identity)

    def signed_by(self, identity: Identity, context: bytes) -> Self:
        """Return the advert with an identity and its signature for this attempt."""
        named = replace(self, identity=identity.public, signature=b"")
        return replace(named, signature=identity.sign(named.signed_part(context)))

    def to_bytes(self) -> bytes:
        """Encode."""
        writer = Writer().number(self.node, 8)
        for key in (self.packet_key, self.mask_key, self.commitment):
            writer.fixed(key, KEY_BYTES)
        return write_signature(writer, self.identity, self.signature).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; MessageFormatError if it is none."""
        reader = Reader(data, "an advert")
        node = reader.number(8)
        keys = [reader.fixed(KEY_BYTES) for _ in range(3)]
        identity, signature = read_signature(reader)
        advert = cls(
            node=node,
            packet_key=keys[0],
            mask_key=keys[1],
            commitment=keys[2],
            identity=identity,
            signature=signature,
        )
        reader.done()
        return advert


class Signed(Protocol):
    """What a node advertises under its identity."""

    @property
    def node(self) -> int: ...  # noqa: D102
    @property
    def identity(self) -> bytes: ...  # noqa: D102
    @property
    def signature(self) -> bytes: ...  # noqa: D102
    def signed_part(self, context: bytes) -> bytes: ...  # noqa: D102


def check_identities(adverts: Sequence[Signed], roster: frozenset[bytes], context: bytes) -> None:
    """Check that every advert is signed by a node of the roster, everyone by its own.

    Raises
    ------
    SignatureError
        If one is not; names its node.
    """
    owners: dict[bytes, int] = {}
    for advert in adverts:
        if advert.identity not in roster:
            raise SignatureError(
                f"secagg: node {advert.node} has an identity that is not in this node's roster.",
                suspects=[advert.node],
            )
        if owners.setdefault(advert.identity, advert.node) != advert.node:
            raise SignatureError(
                f"secagg: nodes {owners[advert.identity]} and {advert.node} have one identity.",
                suspects=[owners[advert.identity], advert.node],
            )
        if not signature_holds(advert.identity, advert.signature, advert.signed_part(context)):
            raise SignatureError(
                f"secagg: the advert of node {advert.node} is not signed by its identity for this attempt.",
                suspects=[advert.node],
            )


@dataclass(frozen=True, kw_only=True)
class ShareRequest:
    """Everyone's adverts, sorted by node, and the graph for that many."""

    topology: Topology
    adverts: tuple[bytes, ...]

    def transcript(self, context: bytes) -> bytes:
        """Return the 32-byte hash of parameters, graph and adverts that all later keys are bound to."""
        return tagged_hash(b"transcript", context, self.to_bytes())

    def to_bytes(self) -> bytes:
        """Encode."""
        writer = Writer().number(self.topology.degree, 4).number(self.topology.threshold, 4)
        return writer.list(self.adverts, writer.sized).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; MessageFormatError if it is none."""
        reader = Reader(data, "a share request")
        topology = Topology(degree=reader.number(4), threshold=reader.number(4))
        request = cls(topology=topology, adverts=tuple(reader.list(reader.sized)))
        reader.done()
        return request


def pack_by_node(values: Mapping[int, bytes], length: int) -> bytes:
    """Encode byte strings of one length by node id: packets by receiver, signatures by signer."""
    writer = Writer()
    return writer.list(
        sorted(values.items()), lambda item: writer.number(item[0], 8).fixed(item[1], length)
    ).done()


def unpack_by_node(data: bytes, length: int, what: str) -> list[tuple[int, bytes]]:
    """Decode :func:`pack_by_node`; a node may occur twice, which the caller judges."""
    reader = Reader(data, what)
    items = reader.list(lambda: (reader.number(8), reader.fixed(length)))
    reader.done()
    return items


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """Who shared secrets (U2), and the packets for one client by sender."""

    nodes: Sequence[int]
    packets: Sequence[tuple[int, bytes]]

    def to_bytes(self) -> bytes:
        """Encode."""
        writer = Writer().ids(self.nodes)
        return writer.list(
            self.packets, lambda item: writer.number(item[0], 8).fixed(item[1], PACKET_BYTES)
        ).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; MessageFormatError if it is none."""
        reader = Reader(data, "a mask request")
        nodes = reader.ids()
        packets = reader.list(lambda: (reader.number(8), reader.fixed(PACKET_BYTES)))
        reader.done()
        return cls(nodes=nodes, packets=packets)


def confirmed_part(transcript: bytes, shared: Sequence[int], survivors: Sequence[int]) -> bytes:
    """Return what a client signs in the consistency stage: that it saw these U2 and U3."""
    return tagged_hash(
        b"confirm", transcript, Writer().ids(sorted(shared)).done(), Writer().ids(sorted(survivors)).done()
    )


@dataclass(frozen=True, kw_only=True)
class UnmaskRequest:
    """Who is in the sum (U3), and the confirmations, none in the honest-but-curious tier."""

    survivors: Sequence[int]
    signatures: Sequence[tuple[int, bytes]] = ()

    def to_bytes(self) -> bytes:
        """Encode."""
        writer = Writer().ids(self.survivors)
        return writer.list(
            self.signatures, lambda item: writer.number(item[0], 8).fixed(item[1], SIGNATURE_BYTES)
        ).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; MessageFormatError if it is none."""
        reader = Reader(data, "an unmask request")
        survivors = reader.ids()
        signatures = reader.list(lambda: (reader.number(8), reader.fixed(SIGNATURE_BYTES)))
        reader.done()
        return cls(survivors=survivors, signatures=signatures)


@dataclass(frozen=True, kw_only=True)
class UnmaskReply:
    """One share per owner: of its own-mask seed if it survived, else of its masking key; never both."""

    seed_shares: Mapping[int, bytes] = field(repr=False)
    key_shares: Mapping[int, bytes] = field(repr=False)

    def to_bytes(self) -> bytes:
        """Encode."""
        return (
            Writer()
            .sized(pack_by_node(self.seed_shares, SHARE_BYTES))
            .sized(pack_by_node(self.key_shares, SHARE_BYTES))
            .done()
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; MessageFormatError if it is none."""
        reader = Reader(data, "an unmask reply")
        seeds = unpack_by_node(reader.sized(), SHARE_BYTES, "an unmask reply")
        keys = unpack_by_node(reader.sized(), SHARE_BYTES, "an unmask reply")
        reader.done()
        if len(dict(seeds)) != len(seeds) or len(dict(keys)) != len(keys):
            raise MessageFormatError("secagg: an unmask reply has two shares of one owner; it is damaged.")
        return cls(seed_shares=dict(seeds), key_shares=dict(keys))
