"""What a node allows, whatever the server says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from numpy.typing import NDArray

from ..checks import check_int, check_number
from ..errors import ConfigError, MessageFormatError, PolicyViolationError
from .graph import PRIVACY_BITS, Topology, collusion_bound, count_of, disconnection_bound
from .parameters import Progress, RoundParameters, Tier
from .prg import RING_DTYPES


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

    def check_begin(
        self,
        parameters: RoundParameters,
        *,
        run_id: int,
        model: bytes,
        layout: bytes,
        vector: NDArray[Any],
        previous: Progress | None,
    ) -> None:
        """Refuse an attempt that is not allowed, not later than the last one, or not about this vector.

        Raises
        ------
        PolicyViolationError
            If parameters are forbidden, or are not those of the node's own model, layout and run.
        StageError
            If the node has begun this attempt or a later one before.
        MessageFormatError
            If the vector is not what the round sums.
        """
        self.check(parameters)
        for name, ours in (("run_id", run_id), ("model", model), ("layout", layout)):
            if getattr(parameters, name) != ours:
                raise PolicyViolationError(
                    f"secagg: the server's {name} is not this node's: it was given something else than the "
                    "others, or the message is of another run; nothing was sent."
                )
        if previous is not None:
            previous.check_later(parameters)
        dtype = RING_DTYPES[parameters.num_bits]
        if vector.shape != (parameters.length,) or vector.dtype != dtype:
            raise MessageFormatError(
                f"secagg: the vector has shape {vector.shape} and dtype {vector.dtype}, but the round's are "
                f"({parameters.length},) and {dtype}."
            )

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
        # First, since the bounds below are only defined for graphs that exist.
        _refuse_unless(
            [
                (
                    topology == right,
                    f"degree {topology.degree} and threshold {t}, but {n} nodes have degree "
                    f"{right.degree} and threshold {right.threshold}",
                )
            ]
        )
        rules = []
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


def _refuse_unless(rules: Sequence[tuple[bool, str]]) -> None:
    for holds, reason in rules:
        if not holds:
            raise PolicyViolationError(
                f"secagg: the server asks for {reason}; nothing was sent. Change the server's "
                "settings or the node's policy."
            )
