"""What an aggregation rule is and gives, and the checks that all rules share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..contracts import Access, Contract, Weighting
from ..dtypes import DType
from ..errors import (
    ConfigError,
    ConfigTypeError,
    ContractError,
    PreconditionError,
    ReplyError,
    StructureError,
)
from .rows import Rows, as_rows
from .streaming import WeightedSum

ROBUST = Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM)
"""What every robust rule needs: each update, and no number that a client claims."""


@dataclass(frozen=True, eq=False)
class Aggregate:
    """A combined update and how much each row counted in it.

    Parameters
    ----------
    value : NDArray
        ``(d,)`` in the rows' dtype.
    contribution : NDArray
        ``(n,)`` float64, >= 0, sums to 1. A selection rule gives 1/m for each of the m selected rows, a
        coordinate-wise rule the share of kept values that are the row's (equal values share), a mean its
        normalised weights.
    state : Mapping[str, NDArray]
        What a :class:`Stateful` rule wants back in the next round; empty for every other.
    """

    value: NDArray[Any]
    contribution: NDArray[np.float64]
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@runtime_checkable
class CohortRule(Protocol):
    """A rule that tolerates a part of the cohort: fixed when it is sampled, not by who answers."""

    def for_cohort(self, n: int) -> "Aggregator":
        """Return the rule for ``n`` sampled clients; raises ``PreconditionError`` as ``check``."""
        ...


@runtime_checkable
class Aggregator(Protocol):
    """A rule: configuration only, called with the updates of one round."""

    @property
    def name(self) -> str:
        """Name in specs and messages."""
        ...

    @property
    def contract(self) -> Contract:
        """What it needs to see, and how it weights."""
        ...

    def check(self, n: int) -> None:
        """Check the rule's precondition for ``n`` updates; raises ``PreconditionError``."""
        ...

    def __call__(self, rows: Rows | NDArray[Any], weights: NDArray[Any] | None = None) -> Aggregate:
        """Combine ``(n, d)`` updates; ``weights`` is ``(n,)`` or, for equal weights, ``None``."""
        ...


@runtime_checkable
class Stateful(Protocol):
    """A rule or pre-aggregator that remembers something from round to round.

    The object itself stays pure: it is called with ``state=...`` and gives the next round's state back with
    its result, so that whoever runs the rounds can save and restore it exactly.
    """

    def initial_state(self, d: int, dtype: DType) -> dict[str, NDArray[Any]]:
        """Return the state before the first round of updates with ``d`` elements of ``dtype``."""
        ...


@runtime_checkable
class Foldable(Protocol):
    """A linear rule: Σ wᵢ·updateᵢ and the weights are all it needs, so no update need be kept.

    The result is the one that the rule's own call gives, bit for bit.
    """

    def from_sum(self, total: WeightedSum, weights: NDArray[np.float64], *, dtype: DType) -> Aggregate:
        """Return the result from the sum of ``(n,)`` weighted updates; equal weights are ones."""
        ...


def call_rule(
    rule: Aggregator,
    rows: Rows | NDArray[Any],
    weights: NDArray[Any] | None = None,
    *,
    state: Mapping[str, NDArray[Any]] | None = None,
) -> Aggregate:
    """Call ``rule``, with ``state`` if it is :class:`Stateful`; ``None`` or empty: before the first round."""
    if not isinstance(rule, Stateful):
        return rule(rows, weights)
    stateful: Any = rule
    result: Aggregate = stateful(rows, weights, state=state or None)
    return result


def validate(
    updates: Rows | NDArray[Any], weights: Any | None = None, *, rule: str
) -> tuple[Rows, NDArray[np.float64]]:
    """Return the updates as rows, and weights normalised to sum 1 (equal ones for ``None``).

    Raises
    ------
    PreconditionError, StructureError
        As :func:`as_rows`; also ``StructureError`` if the weights are not ``(n,)`` numbers.
    ReplyError
        Naming the first row whose weight is not finite and > 0.
    """
    rows = as_rows(updates, rule=rule)
    n = rows.shape[0]
    if weights is None:
        return rows, np.full(n, 1.0 / n)
    given = np.asarray(weights)
    if given.shape != (n,) or given.dtype.kind not in "iuf":
        raise StructureError(
            f"{rule}: weights have shape {given.shape} and dtype {given.dtype} but n={n} numbers are needed."
        )
    claimed = given.astype(np.float64)
    unusable = np.flatnonzero(~(np.isfinite(claimed) & (claimed > 0)))
    if unusable.size:
        raise ReplyError(
            f"{rule}: row {unusable[0]} has weight {claimed[unusable[0]]:g} but weights must be finite "
            "and > 0; quarantine that client's reply."
        )
    claimed /= claimed.max()  # the sum of finite weights may overflow
    return rows, claimed / claimed.sum()


def validate_unweighted(updates: Rows | NDArray[Any], weights: Any | None, *, rule: str) -> Rows:
    """Return the updates as rows, for a rule in which every client counts the same.

    Raises
    ------
    ContractError
        If there are weights: one client that claims 10¹² examples would decide the result.
    """
    if weights is not None:
        raise ContractError(
            f"{rule}: weights were given but this rule counts every client the same; pass weights=None."
        )
    return as_rows(updates, rule=rule)


def check_count(value: Any, *, rule: str, name: str, minimum: int = 0) -> None:
    """Check a parameter that counts clients.

    Raises
    ------
    ConfigTypeError
        If it is not an ``int`` (a ``bool`` is none).
    ConfigError
        If it is below ``minimum``.
    """
    if type(value) is not int:
        raise ConfigTypeError(f"{rule}: {name}={value!r} is a {type(value).__name__}; give a whole number.")
    if value < minimum:
        raise ConfigError(f"{rule}: {name}={value} but it must be >= {minimum}.")


def check_positive(value: Any, *, rule: str, name: str) -> None:
    """Check a parameter that is a length or a tolerance.

    Raises
    ------
    ConfigTypeError
        If it is no number (a ``bool`` is none).
    ConfigError
        If it is not finite and > 0.
    """
    if type(value) not in (int, float):
        raise ConfigTypeError(f"{rule}: {name}={value!r} is a {type(value).__name__}; give a number.")
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{rule}: {name}={value} but it must be finite and > 0.")


def check_majority(n: int, num_byzantine: int, *, rule: str) -> None:
    """Raise ``PreconditionError`` unless ``n > 2f``: an honest majority."""
    if n < 1 or n <= 2 * num_byzantine:
        raise PreconditionError(
            f"{rule}: n={n} updates but num_byzantine={num_byzantine} needs n > 2f, that is n >= "
            f"{2 * num_byzantine + 1}; raise min_train_nodes or lower num_byzantine."
        )
