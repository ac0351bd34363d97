"""What a round's clients and server must agree on, and what a node allows whatever the server says."""

import enum
import json
import math
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any, Self

from ..checks import check_int, check_number
from ..errors import ConfigError, EncodingError, MessageFormatError, PolicyViolationError, StageError
from .codec import Reader, Writer
from .graph import (
    PRIVACY_BITS,
    Topology,
    collusion_bound,
    complete,
    count_of,
    disconnection_bound,
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

    def __post_init__(self) -> None:
        owner = "secure aggregation"
        if not isinstance(self.tier, Tier):
            raise ConfigError(f"{owner}: tier={self.tier!r}; give one of {[t.value for t in Tier]}.")
        for name in ("run_id", "round", "attempt"):
            check_int(owner, name, getattr(self, name), minimum=0)
        check_int(owner, "min_clients", self.min_clients, minimum=2)
        check_int(owner, "cohort", self.cohort, minimum=self.min_clients)
        check_int(owner, "length", self.length, minimum=1)
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
        return plan(num_nodes, corrupt=self.corrupt, dropout=self.dropout)

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


@dataclass(frozen=True, kw_only=True)
class ClientPolicy:
    """What a node's operator allows; the server's word changes none of it.

    Parameters
    ----------
    required_tier : Tier
        ``MALICIOUS`` refuses rounds without identities.
    min_clients : int
        Fewest clients that the node lets itself be summed with.
    corrupt : float
        The fraction of colluding clients that the graph and threshold must withstand.
    num_bits : frozenset[int]
        Rings that the node computes in.
    max_length : int
        Most ring words that it sends.
    roster : frozenset[bytes]
        Ed25519 public keys of every node that may take part, from the operator's file; needed for
        ``MALICIOUS`` rounds.
    """

    required_tier: Tier = Tier.HONEST_BUT_CURIOUS
    min_clients: int = 3
    corrupt: float = 0.05
    num_bits: frozenset[int] = frozenset({16, 32})
    max_length: int = 2**31
    roster: frozenset[bytes] = field(default=frozenset(), repr=False)

    def __post_init__(self) -> None:
        check_int("secure aggregation policy", "min_clients", self.min_clients, minimum=2)
        check_number("secure aggregation policy", "corrupt", self.corrupt, minimum=0.0, maximum=0.5)
        if self.required_tier is Tier.MALICIOUS and not self.roster:
            raise ConfigError(
                "secure aggregation policy: required_tier is malicious, but the roster is empty; "
                "name the file with the peers' public keys."
            )

    def check(self, parameters: RoundParameters) -> None:
        """Refuse parameters that are not allowed.

        Raises
        ------
        PolicyViolationError
            With the rule that they break.
        """
        rules = (
            (
                self.required_tier is Tier.HONEST_BUT_CURIOUS or parameters.tier is Tier.MALICIOUS,
                f"tier {parameters.tier}, but this node takes part in malicious-tier rounds only",
            ),
            (
                parameters.tier is not Tier.MALICIOUS or bool(self.roster),
                "a malicious-tier round, but this node has no roster of its peers",
            ),
            (
                parameters.min_clients >= self.min_clients,
                f"min_clients={parameters.min_clients}, but this node wants >= {self.min_clients}",
            ),
            (
                parameters.corrupt >= self.corrupt,
                f"corrupt={parameters.corrupt:g}, but this node reckons with {self.corrupt:g}",
            ),
            (
                parameters.num_bits in self.num_bits,
                f"a ring of {parameters.num_bits} bits, but this node allows {sorted(self.num_bits)}",
            ),
            (
                parameters.length <= self.max_length,
                f"length={parameters.length}, but this node sends at most {self.max_length} words",
            ),
        )
        _refuse_unless(rules)

    def check_topology(self, parameters: RoundParameters, topology: Topology, num_nodes: int) -> None:
        """Refuse a graph or threshold that does not withstand this node's fraction of colluders.

        The announced one must also be exactly the public function's, so the server chooses nothing.

        Raises
        ------
        PolicyViolationError
            With the rule that it breaks.
        """
        n, t = num_nodes, topology.threshold
        colluding = count_of(self.corrupt, n)
        least = max(parameters.min_clients, self.min_clients)
        _refuse_unless(
            [
                (n >= least, f"a sum of {n} nodes, but {least} are needed"),
                (
                    n <= parameters.cohort,
                    f"a sum of {n} nodes, but the ring is sized for {parameters.cohort}",
                ),
            ]
        )
        right = parameters.topology(n)
        rules = [
            (
                topology == right,
                f"degree {topology.degree} and threshold {t}, but {n} nodes have degree {right.degree} and "
                f"threshold {right.threshold}",
            )
        ]
        if topology.is_complete(n):
            rules.append((t > colluding, f"threshold {t}, but {colluding} of {n} nodes may collude"))
            if parameters.tier is Tier.MALICIOUS:
                rules.append(
                    (
                        2 * t > n + colluding,
                        f"threshold {t}, but two sets of survivors could both be confirmed unless "
                        f"2t > n + colluders = {n + colluding}",
                    )
                )
        else:
            removed = colluding + count_of(parameters.dropout, n)
            risk = collusion_bound(n, topology, colluding) + disconnection_bound(n, topology.degree, removed)
            rules.append(
                (
                    risk <= Fraction(2, 2**PRIVACY_BITS),
                    f"degree {topology.degree} and threshold {t} fail with probability "
                    f"2^{math.log2(risk) if risk else -math.inf:.1f} for {colluding} colluders of {n}",
                )
            )
        _refuse_unless(rules)


def _refuse_unless(rules: Any) -> None:
    for holds, reason in rules:
        if not holds:
            raise PolicyViolationError(
                f"secagg: the server asks for {reason}; nothing was sent. Change the server's "
                "settings or the node's policy."
            )
