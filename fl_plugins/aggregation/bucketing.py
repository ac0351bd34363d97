"""Bucketing: averages of random buckets (Karimireddy, He and Jaggi 2022, Algorithm 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..dtypes import DType
from ..errors import PreconditionError
from ..registry import Kind, register
from ..seeds import derive_rng
from .core import check_count, validate_unweighted
from .mixing import Mixed, mixed, to_dense
from .rows import Rows, canonical_order


@register(
    Kind.PREAGGREGATOR,
    "bucketing",
    paper="Karimireddy et al. 2022, Byzantine-Robust Learning on Heterogeneous Datasets via Bucketing",
)
@dataclass(frozen=True, kw_only=True)
class Bucketing:
    """Shuffle the updates into buckets of ``size`` and hand on the buckets' means.

    f hostile clients spoil up to f of the ⌈n/size⌉ buckets, so the rule behind it must tolerate f of *those*:
    its own precondition is checked against the number of buckets.

    Parameters
    ----------
    size : int
        Updates per bucket, >= 1; the last one takes what is left.
    seed : int
        Seed of the shuffles. Whoever knows it knows the buckets in advance: keep it at the server.

    Guarantees
    ----------
    Each round shuffles anew: the state is the number of rounds so far, ``{"round": int64}``; called without
    a state, it is the first round. What is shuffled are the rows in canonical order, so the order of arrival
    does not matter, bit for bit.

    Raises
    ------
    ConfigError, ConfigTypeError
        If a parameter is too small or no ``int``.
    """

    size: int
    seed: int = 0

    name: ClassVar[str] = "bucketing"

    def __post_init__(self) -> None:
        check_count(self.size, rule=self.name, name="size", minimum=1)
        check_count(self.seed, rule=self.name, name="seed")

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless ``n >= 1``."""
        if n < 1:
            raise PreconditionError(f"{self.name}: n={n} updates but n >= 1 is needed; wait for a reply.")

    def num_outputs(self, n: int) -> int:
        """Return the number of buckets, ⌈n/size⌉."""
        return -(-n // self.size)

    def initial_state(self, d: int, dtype: DType) -> dict[str, NDArray[Any]]:  # noqa: ARG002  any model
        """Return round 0."""
        return {"round": np.array(0, np.int64)}

    def __call__(
        self, rows: Rows | NDArray[Any], *, state: Mapping[str, NDArray[Any]] | None = None
    ) -> Mixed:
        """Average ``(n, d)`` updates bucket by bucket."""
        valid = validate_unweighted(rows, None, rule=self.name)
        n = valid.shape[0]
        number = 0 if state is None else int(state["round"])
        shuffled = derive_rng(self.seed, "bucketing", number).permutation(n)
        matrix = np.zeros((self.num_outputs(n), n))
        for row, start in zip(matrix, range(0, n, self.size), strict=True):
            bucket = shuffled[start : start + self.size]
            row[bucket] = 1.0 / len(bucket)
        result = mixed(valid, canonical_order(valid), matrix)
        return Mixed(result.rows, result.mixing, {"round": np.array(number + 1, np.int64)})


def bucketing(
    updates: Rows | NDArray[Any], *, size: int, seed: int = 0, round_number: int = 0
) -> NDArray[Any]:
    """Return the ``(⌈n/size⌉, d)`` means of one round's buckets; see :class:`Bucketing`.

    >>> bucketing(np.array([[1.0], [1.0], [1.0]]), size=2)
    array([[1.],
           [1.]])
    """
    state = {"round": np.array(round_number, np.int64)}
    return to_dense(Bucketing(size=size, seed=seed)(updates, state=state).rows)
