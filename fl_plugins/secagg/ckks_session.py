"""Two stages of encrypted summing: clients send ciphertexts, the server adds, one client decrypts the sum.

The server must not have the key, so it cannot read what it added up: it sends the encrypted sum to one
client, which decrypts it and sends it back. A client decrypts once in an attempt that it took part in. It
cannot see *whose* vectors are in a ciphertext: that the server has added as many as it says is read off four
ones that every vector holds, which a server that computes other things than sums can forge.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from numpy.typing import NDArray

from ..errors import EncodingError, MessageFormatError, RoundAbortedError, StageError, SurvivorError
from .answers import AskedNodes, SecureSum
from .ckks import EncryptedSum, SumKey
from .client import Reply
from .codec import Reader, Writer
from .fixed_point import NUM_ONES
from .messages import Stage
from .parameters import RoundParameters
from .policy import ClientPolicy
from .prg import RING_DTYPES

_MAX_ASKED = 3
"""Clients that are asked to decrypt, one after the other, until one does."""


@dataclass(kw_only=True)
class EncryptedClientSession:
    """One attempt on one client: its vector has left encrypted, and it may be asked to decrypt the sum.

    What is saved is no secret.
    """

    parameters: RoundParameters
    node: int
    key: SumKey
    policy: ClientPolicy
    stage: Stage = Stage.UNMASK

    def begin(self, words: NDArray[Any]) -> Reply:
        """Return the vector, encrypted.

        Raises
        ------
        MessageFormatError
            If it is not what the round sums.
        """
        dtype = RING_DTYPES[self.parameters.num_bits]
        if words.shape != (self.parameters.length,) or words.dtype != dtype:
            raise MessageFormatError(
                f"ckks: the vector has shape {words.shape} and dtype {words.dtype}, but the round's are "
                f"({self.parameters.length},) and {dtype}."
            )
        return Reply(body=b"", vector=self.key.encrypt(words))

    def answer(self, stage: Stage, request: bytes) -> Reply:
        """Decrypt one sum; the session is closed, whatever happens.

        Raises
        ------
        SecureAggregationError
            Which one says what is wrong; nothing is sent then.
        """
        if stage is not self.stage or stage is Stage.CLOSED:
            self.stage = Stage.CLOSED
            raise StageError(
                f"ckks: node {self.node} was asked for stage {stage}, but a client decrypts one sum, once; "
                "the session is closed."
            )
        self.stage = Stage.CLOSED
        reader = Reader(request, "a request to decrypt")
        nodes, data = reader.ids(), reader.sized()
        reader.done()
        least = max(self.parameters.min_clients, self.policy.min_clients)
        if nodes != sorted(set(nodes)) or self.node not in nodes or len(nodes) < least:
            raise SurvivorError(
                f"ckks: a sum of {len(nodes)} nodes, but it is of {least} distinct ones at least, and of "
                f"node {self.node}."
            )
        words = self.key.decrypt(data, self.parameters.length, self.parameters.num_bits)
        ones = words[:NUM_ONES].tolist()
        if ones != [len(nodes)] * NUM_ONES:
            raise EncodingError(
                f"ckks: the check ones add up to {ones}, but {len(nodes)} nodes are said to be in the sum; "
                "nothing was sent."
            )
        return Reply(body=b"", vector=words)

    def to_bytes(self) -> bytes:
        """Return the session as bytes, without the key."""
        return Writer().number(self.node, 8).sized(self.parameters.to_bytes()).done()

    @classmethod
    def from_bytes(cls, data: bytes, *, key: SumKey, policy: ClientPolicy) -> Self:
        """Read what :meth:`to_bytes` wrote on this node; MessageFormatError if it is anything else."""
        reader = Reader(data, "a saved session")
        node, parameters = reader.number(8), RoundParameters.from_bytes(reader.sized())
        reader.done()
        return cls(parameters=parameters, node=node, key=key, policy=policy)


class EncryptedServerSession(AskedNodes):
    """One attempt at one round.

    Parameters
    ----------
    parameters : RoundParameters
        Of the attempt.
    clients : Iterable[int]
        Node ids of who is asked.
    """

    def __init__(self, parameters: RoundParameters, clients: Iterable[int]) -> None:
        super().__init__(parameters, Stage.MASK, clients)
        self._sum = EncryptedSum(parameters.length)
        self._survivors: tuple[int, ...] = ()
        self._request = b""
        self._asked_to_decrypt = 0

    def requests(self) -> Mapping[int, bytes]:
        """Return what to send to whom in this stage."""
        if self.stage is Stage.CLOSED:
            raise StageError("ckks: the session is closed; there is nothing to send.")
        body = self._request if self.stage is Stage.UNMASK else self.parameters.to_bytes()
        return dict.fromkeys(self._asked, body)

    def _take(self, node: int, body: bytes, vector: NDArray[Any] | None) -> Any:
        if vector is None or body or vector.ndim != 1:
            raise MessageFormatError(f"ckks: node {node} sent something else than one vector.")
        if self.stage is Stage.MASK:
            if vector.dtype.str != "|u1":
                raise MessageFormatError(
                    f"ckks: node {node} sent {vector.dtype}, but no bytes of ciphertexts."
                )
            self._sum.add(vector.tobytes())
            return True
        dtype = RING_DTYPES[self.parameters.num_bits]
        if vector.shape != (self.parameters.length,) or vector.dtype != dtype:
            raise MessageFormatError(f"ckks: what node {node} decrypted is of another shape or ring.")
        return vector.copy()

    def _finish(self) -> Stage:
        if self.stage is Stage.MASK:
            self._survivors = self._need_clients()
            self._request = Writer().ids(self._survivors).sized(self._sum.to_bytes()).done()
        elif self._answers:
            (vector,) = self._answers.values()
            self._result = SecureSum(vector=vector, survivors=self._survivors, dropped=(), wrong_shares=())
            return Stage.CLOSED
        if self._asked_to_decrypt == min(_MAX_ASKED, len(self._survivors)):
            reasons = "; ".join(f"{node}: {why}" for node, why in sorted(self.refusals.items())[:5])
            raise RoundAbortedError(
                f"ckks: {self._asked_to_decrypt} nodes were asked to decrypt the sum and none did. Refusals: "
                f"{reasons or 'none'}. Begin again."
            )
        # Whose turn it is first depends on the session's random id: the load is everyone's.
        first = int.from_bytes(self.parameters.sid, "big") + self._asked_to_decrypt
        self._asked = (self._survivors[first % len(self._survivors)],)
        self._asked_to_decrypt += 1
        return Stage.UNMASK

    def _drop(self) -> None:
        self._request = b""
