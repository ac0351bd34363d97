"""The messages of additive sharing over helpers, and what of them is checked without a policy."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from ..errors import AdvertError, SurvivorError
from .codec import Reader, Writer
from .keys import KEY_BYTES, Identity, point_of, public_key, tagged_hash
from .messages import pack_by_node, read_signature, unpack_by_node, write_signature
from .parameters import RoundParameters, Tier
from .shares import TAG_BYTES

SEALED_BYTES = KEY_BYTES + TAG_BYTES


@dataclass(frozen=True, kw_only=True)
class KeyAdvert:
    """A node's fresh X25519 key for one attempt, a helper's or a client's; signed in the malicious tier."""

    node: int
    key: bytes
    identity: bytes = b""
    signature: bytes = b""

    def signed_part(self, context: bytes) -> bytes:
        """Return what the signature is over."""
        node = self.node.to_bytes(8, "big")
        return tagged_hash(b"additive-key", context, node, self.key, self.identity)

    @classmethod
    def make(cls, node: int, secret: bytes, context: bytes, identity: Identity | None) -> Self:
        """Return the advert of a secret's public half, under an identity if there is one."""
        advert = cls(node=node, key=public_key(secret), identity=b"" if identity is None else identity.public)
        if identity is None:
            return advert
        return replace(advert, signature=identity.sign(advert.signed_part(context)))

    def to_bytes(self) -> bytes:
        """Encode."""
        writer = Writer().number(self.node, 8).fixed(self.key, KEY_BYTES)
        return write_signature(writer, self.identity, self.signature).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; MessageFormatError if it is none."""
        reader = Reader(data, "a key advert")
        node, key = reader.number(8), reader.fixed(KEY_BYTES)
        identity, signature = read_signature(reader)
        reader.done()
        return cls(node=node, key=key, identity=identity, signature=signature)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What everyone must have been told alike: parameters, who is asked, and the helpers' keys.

    ``adverts`` are empty while helpers are asked for them.
    """

    parameters: RoundParameters
    cohort: tuple[int, ...]
    adverts: tuple[KeyAdvert, ...] = ()

    @property
    def context(self) -> bytes:
        """What helpers' keys are signed for."""
        return tagged_hash(b"additive-context", self.parameters.context, Writer().ids(self.cohort).done())

    @property
    def transcript(self) -> bytes:
        """What every seed, packet and client's key is bound to."""
        return tagged_hash(b"additive-transcript", self.to_bytes())

    def to_bytes(self) -> bytes:
        """Encode."""
        writer = Writer().sized(self.parameters.to_bytes()).ids(self.cohort)
        return writer.list([advert.to_bytes() for advert in self.adverts], writer.sized).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode and check what needs no policy.

        Raises
        ------
        MessageFormatError
            If it is none.
        SurvivorError
            If the cohort is not of distinct nodes in order, as many as the ring is sized for.
        AdvertError
            If helpers are not distinct nodes outside the cohort, each with a key of its own.
        """
        reader = Reader(data, "an attempt with helpers")
        parameters, cohort = RoundParameters.from_bytes(reader.sized()), tuple(reader.ids())
        adverts = tuple(map(KeyAdvert.from_bytes, reader.list(reader.sized)))
        reader.done()
        if not is_ascending(cohort) or len(cohort) != parameters.cohort:
            raise SurvivorError(
                f"secagg: a cohort of {len(cohort)} nodes, but it is of {parameters.cohort} distinct ones in "
                "ascending order."
            )
        helpers = [advert.node for advert in adverts]
        if not is_ascending(helpers) or set(helpers) & set(cohort):
            raise AdvertError("secagg: helpers are distinct nodes in ascending order, none of the cohort.")
        if len({point_of(advert.key) for advert in adverts}) != len(adverts):
            raise AdvertError("secagg: two helpers advertised one key.", suspects=helpers)
        check_tier(parameters, adverts)
        return cls(parameters=parameters, cohort=cohort, adverts=adverts)


@dataclass(frozen=True, kw_only=True)
class ClientMessage:
    """What a client sends beside its vector: its key, and for every helper a sealed seed."""

    advert: KeyAdvert
    packets: Sequence[tuple[int, bytes]]

    def to_bytes(self) -> bytes:
        """Encode."""
        packed = pack_by_node(dict(self.packets), SEALED_BYTES)
        return Writer().sized(self.advert.to_bytes()).sized(packed).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; MessageFormatError if it is none."""
        reader = Reader(data, "a client's message to its helpers")
        advert, packed = KeyAdvert.from_bytes(reader.sized()), reader.sized()
        reader.done()
        return cls(advert=advert, packets=unpack_by_node(packed, SEALED_BYTES, "a client's sealed seeds"))


@dataclass(frozen=True, kw_only=True)
class UnmaskRequest:
    """For one helper: the attempt, and of each client in U its key and the seed sealed for this helper."""

    attempt: bytes
    packets: Sequence[tuple[KeyAdvert, bytes]]

    def to_bytes(self) -> bytes:
        """Encode."""
        writer = Writer().sized(self.attempt)
        return writer.list(
            self.packets, lambda item: writer.sized(item[0].to_bytes()).fixed(item[1], SEALED_BYTES)
        ).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Decode; MessageFormatError if it is none."""
        reader = Reader(data, "an unmask request to a helper")
        attempt = reader.sized()
        packets = reader.list(lambda: (KeyAdvert.from_bytes(reader.sized()), reader.fixed(SEALED_BYTES)))
        reader.done()
        return cls(attempt=attempt, packets=packets)


def check_tier(parameters: RoundParameters, adverts: Sequence[KeyAdvert]) -> None:
    """Refuse keys that are signed where they must not be, or the other way round."""
    for advert in adverts:
        if bool(advert.identity) is not (parameters.tier is Tier.MALICIOUS):
            raise AdvertError(
                f"secagg: the key of node {advert.node} is of another tier.", suspects=[advert.node]
            )


def is_ascending(nodes: Sequence[int]) -> bool:
    """Whether these are distinct node ids in ascending order."""
    return list(nodes) == sorted(set(nodes)) and 0 not in nodes
