"""What a client remembers from one stage to the next, as bytes: a fresh process may serve the next one."""

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import MessageFormatError
from .codec import Reader, Writer
from .prg import RING_DTYPES


@dataclass(kw_only=True)
class Memory:
    """What a client's session knows between stages; nothing of it may be shown.

    What was saved is as secret as the update: a node keeps it in its own state and deletes it at the end.
    """

    advert: bytes = b""
    packet_secret: bytes = field(default=b"", repr=False)
    mask_secret: bytes = field(default=b"", repr=False)
    seed: bytes = field(default=b"", repr=False)
    vector: NDArray[Any] | None = field(default=None, repr=False)
    transcript: bytes = b""
    degree: int = 0
    threshold: int = 0
    nodes: dict[int, bytes] = field(default_factory=dict)
    """Every node of U1 and its identity key (empty in the honest-but-curious tier)."""
    peers: dict[int, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    """For every neighbor: the key of the packets between us, and its public masking key."""
    own_share: bytes = field(default=b"", repr=False)
    shares: dict[int, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    """For every neighbor in U2: its shares of own-mask seed and masking key."""
    shared: tuple[int, ...] = ()
    """U2."""
    survivors: tuple[int, ...] = ()
    """The U3 that was signed."""

    def write(self, writer: Writer) -> None:
        """Append everything, secrets included."""
        writer.sized(self.advert)
        for secret in (self.packet_secret, self.mask_secret, self.seed):
            writer.sized(secret)
        writer.sized(b"" if self.vector is None else self.vector.data.cast("B"))
        writer.sized(self.transcript).number(self.degree, 4).number(self.threshold, 4)
        writer.list(list(self.nodes.items()), lambda item: writer.number(item[0], 8).sized(item[1]))
        for table in (self.peers, self.shares):
            writer.list(
                list(table.items()),
                lambda item: writer.number(item[0], 8).sized(item[1][0]).sized(item[1][1]),
            )
        writer.sized(self.own_share).ids(self.shared).ids(self.survivors)

    @classmethod
    def read(cls, reader: Reader, num_bits: int) -> Self:
        """Read what :meth:`write` wrote."""
        memory = cls(
            advert=reader.sized(),
            packet_secret=reader.sized(),
            mask_secret=reader.sized(),
            seed=reader.sized(),
        )
        words = reader.sized()
        dtype = RING_DTYPES[num_bits]
        if len(words) % dtype.itemsize:
            raise MessageFormatError("secagg: the saved session's vector is no vector; begin a new round.")
        if words:
            memory.vector = np.frombuffer(bytearray(words), dtype)
        memory.transcript = reader.sized()
        memory.degree, memory.threshold = reader.number(4), reader.number(4)
        memory.nodes = dict(reader.list(lambda: (reader.number(8), reader.sized())))
        for table in (memory.peers, memory.shares):
            table.update(reader.list(lambda: (reader.number(8), (reader.sized(), reader.sized()))))
        memory.own_share = reader.sized()
        memory.shared, memory.survivors = tuple(reader.ids()), tuple(reader.ids())
        return memory
