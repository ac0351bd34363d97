"""What a round's clients and server must agree on, and what a node allows whatever the server says."""

import enum
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from ..checks import check_int, check_number
from ..errors import ConfigError, EncodingError, MessageFormatError, StageError
from .codec import Reader, Writer
from .graph import (
    MAX_COMPLETE,
    Topology,
    complete,
    count_of,
    plan,
)
from .keys import tagged_hash

SID_BYTES = 16
MIN_LEVELS = 8
"""Fewest positive levels of a value: below, rounding drowns the sum in noise."""


class Tier(enum.StrEnum):
    """Whom the protocol withstands."""

    HONEST_BUT_CURIOUS = "honest-but-curious"
    """A server that keeps to the protocol but uses whatever it sees, and fewer than t colluding clients."""

    MALICIOUS = "malicious"
    """A server that sends whatever it likes: identities, a consistency stage, the complete graph only."""


@dataclass(frozen=True, kw_only=True)
class RoundParameters:
    """One attempt at one round; every field is part of :attr:`context`, which all keys are bound to.

    Parameters
    ----------
    tier : Tier
        The adversary model.
    run_id, round, attempt : int
        Which run, round and attempt at it. A node never goes back.
    sid : bytes
        16 fresh random bytes: no two attempts share one.
    cohort : int
        How many clients are asked, the n that the ring is sized for.
    min_clients : int
        Fewest clients in a sum.
    corrupt, dropout : float
        Fractions of the clients that may collude with the server and that may drop out.
    num_bits : int
        The ring Z/2^b: 16 or 32.
    clip : float
        Largest magnitude of an update's entry; larger ones are clipped.
    max_weight : float
        Largest weight of a client.
    length : int
        Ring words of a client's vector.
    layout : bytes
        32-byte hash of names, shapes and dtypes of what the vector holds.
    model : bytes
        32-byte hash of the global parameters that the clients were given.
    max_complete : int
        Up to this many nodes the graph is complete; in the malicious tier it always is.
    """

    tier: Tier
    run_id: int
    round: int
    attempt: int
    sid: bytes
    cohort: int
    min_clients: int
    corrupt: float
    dropout: float
    num_bits: int
    clip: float
    max_weight: float
    length: int
    layout: bytes
    model: bytes
    max_complete: int = MAX_COMPLETE

    def __post_init__(self) -> None:
        owner = "secure aggregation"
        if not isinstance(self.tier, Tier):
            raise ConfigError(f"{owner}: tier={self.tier!r}; give one of {[t.value for t in Tier]}.")
        for name in ("run_id", "round", "attempt"):
            check_int(owner, name, getattr(self, name), minimum=0)
            if getattr(self, name) >= 1 << 64:
                raise ConfigError(f"{owner}: {name}={getattr(self, name)}, but it must be below 2^64.")
        check_int(owner, "min_clients", self.min_clients, minimum=2)
        check_int(owner, "cohort", self.cohort, minimum=self.min_clients)
        check_int(owner, "length", self.length, minimum=1)
        check_int(owner, "max_complete", self.max_complete, minimum=8)
        for name in ("corrupt", "dropout"):
            check_number(owner, name, getattr(self, name), minimum=0.0, maximum=0.5)
        for name in ("clip", "max_weight"):
            check_number(owner, name, getattr(self, name), minimum=0.0, open_below=True)
        if self.num_bits not in (16, 32) or type(self.num_bits) is not int:
            raise ConfigError(f"{owner}: num_bits={self.num_bits!r}, but rings have 16 or 32 bits.")
        for name, length in (("sid", SID_BYTES), ("layout", 32), ("model", 32)):
            if len(getattr(self, name)) != length:
                raise ConfigError(f"{owner}: {name} has {len(getattr(self, name))} bytes, not {length}.")
        ring_levels(self.num_bits, self.cohort)

    @property
    def levels(self) -> int:
        """Positive levels L of one client's value, so that ``cohort`` of them cannot wrap."""
        return ring_levels(self.num_bits, self.cohort)

    @property
    def context(self) -> bytes:
        """The 32-byte hash that binds every key, share and signature to these parameters."""
        return tagged_hash(b"context", self.to_bytes())

    def topology(self, num_nodes: int) -> Topology:
        """Return the graph for the nodes that advertised keys."""
        if self.tier is Tier.MALICIOUS:
            # No two sets of survivors may both get t signatures: see docs/secure-aggregation.md.
            confirmable = (num_nodes + count_of(self.corrupt, num_nodes)) // 2 + 1
            return complete(num_nodes, at_least=confirmable)
        return plan(num_nodes, corrupt=self.corrupt, dropout=self.dropout, max_complete=self.max_complete)

    def to_bytes(self) -> bytes:
        """Return the one encoding that these parameters have (JSON, keys sorted)."""
        values = {
            name: value.hex() if isinstance(value, bytes) else value for name, value in asdict(self).items()
        }
        return json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what :meth:`to_bytes` wrote.

        Raises
        ------
        MessageFormatError
            If it is anything else, values out of range included.
        """
        try:
            values: dict[str, Any] = json.loads(data)
            if set(values) != {spec.name for spec in fields(cls)}:
                raise ValueError("the names differ")
            for name in ("sid", "layout", "model"):
                values[name] = bytes.fromhex(values[name])
            parameters = cls(**{**values, "tier": Tier(values["tier"])})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise MessageFormatError(
                f"secagg: these are no parameters of a round ({error}); is the server of another version?"
            ) from None
        if parameters.to_bytes() != data:
            raise MessageFormatError("secagg: the parameters are not in their one encoding; refused.")
        return parameters


def ring_levels(num_bits: int, cohort: int) -> int:
    """Return how many positive levels a client's value may have in a sum of ``cohort`` values.

    Raises
    ------
    EncodingError
        If they are too few to be of use.
    """
    half = (1 << (num_bits - 1)) - 1
    levels = half // cohort - 1
    if levels < MIN_LEVELS:
        raise EncodingError(
            f"secagg: the sum of {cohort} clients must stay within ±{half} in a ring of {num_bits} "
            f"bits, which leaves {levels} levels per value, but {MIN_LEVELS} are needed; use 32 bits "
            f"or at most {half // (MIN_LEVELS + 1)} clients."
        )
    return levels


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The last attempt that a node began; it never begins one that is not later."""

    run_id: int
    round: int
    attempt: int

    @classmethod
    def of(cls, parameters: RoundParameters) -> Self:
        """Return where these parameters are."""
        return cls(run_id=parameters.run_id, round=parameters.round, attempt=parameters.attempt)

    def check_later(self, parameters: RoundParameters) -> None:
        """Refuse an attempt of the same run that is not later than this one.

        Raises
        ------
        StageError
            If the round number was rolled back or the attempt is repeated.
        """
        now, last = (parameters.round, parameters.attempt), (self.round, self.attempt)
        if parameters.run_id == self.run_id and now <= last:
            raise StageError(
                f"secagg: round {now[0]}, attempt {now[1]} is not after round {last[0]}, attempt {last[1]}, "
                "which this node has begun; an attempt is never repeated. Count the server's "
                "attempts upwards."
            )

    def to_bytes(self) -> bytes:
        """Return 24 bytes to keep in the node's state."""
        return Writer().number(self.run_id, 8).number(self.round, 8).number(self.attempt, 8).done()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what :meth:`to_bytes` wrote; MessageFormatError if it is anything else."""
        reader = Reader(data, "a node's progress")
        progress = cls(run_id=reader.number(8), round=reader.number(8), attempt=reader.number(8))
        reader.done()
        return progress
