"""Banded matrix factorisation: noise that cancels out over the rounds, for units that seldom take part.

Training follows the running sums of what rounds release. Independent noise adds up in them; here a round's
noise takes back part of the rounds' before it (DP-FTRL: Kairouz et al. 2021; banded: Choquette-Choo et al.
2023, "(Amplified) Banded Matrix Factorization").

=====  ===================================================================================================
T      rounds in one stream
b      bands; a unit takes part in rounds that are at least b apart (*b-min-separation*)
k      blocks: ⌈T/b⌉; a unit takes part in each at most once
x      ``(T, d)``: the rounds' sums; one unit changes row t by at most one clip norm
C      ``(T, T)``, lower triangular, C[t, s] = 0 unless 0 ≤ t − s < b
z      ``(T, d)`` independent N(0, σ²)
y      what is released: x + C⁻¹z, which is C⁻¹(C·x + z): a function of a Gaussian release of C·x
w      ``(k,)``: the largest ‖C[:, t]‖² in each block; they sum to k
=====  ===================================================================================================

**Sensitivity.** Let Δ be by how much one unit changes x, in clip norms: nonzero in rounds at least b apart,
where the columns of C have no row in common. So ‖C·Δ‖² = Σ ‖C[:, t]‖²·‖Δ[t]‖² ≤ Σ w over the blocks so far,
whatever the directions of Δ, and it may depend on all that was released before (Denisov et al. 2022: C is
lower triangular and the noise Gaussian). A block costs what a Gaussian release with σ/√w costs; a stream
as much as k releases with σ, and one that ends early only the blocks that it began.

C minimises the mean squared error of all T running sums under these constraints. How good the minimum is
matters for utility only: the weights are computed from the matrix that is used.
"""

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_plugins.checks import check_int
from fl_plugins.errors import ConfigError, PreconditionError

Floats = NDArray[np.float64]

MAX_ROUNDS = 1024
"""Of one stream: the minimisation takes time in proportion to T³, some ten seconds here."""

_STEPS = 60
_ROUNDING = 1e-12
"""Relative: more than what rounding can take off a computed norm."""


@dataclass(frozen=True, kw_only=True)
class BandedMatrix:
    """The matrix C of one stream of rounds.

    >>> matrix = BandedMatrix(rounds=64, bands=16)
    >>> [round(float(weight), 2) for weight in matrix.block_weights]
    [1.26, 1.1, 0.93, 0.71]
    >>> round(matrix.gain, 2)
    2.54

    Parameters
    ----------
    rounds : int
        T, at most :data:`MAX_ROUNDS`; longer runs are several streams.
    bands : int
        b, from 2.
    """

    rounds: int
    bands: int

    def __post_init__(self) -> None:
        check_int("banded matrix", "rounds", self.rounds, minimum=1)
        check_int("banded matrix", "bands", self.bands, minimum=2)
        if self.rounds > MAX_ROUNDS:
            raise ConfigError(
                f"banded matrix: rounds={self.rounds}, but a stream has at most {MAX_ROUNDS}; give fewer: "
                "after its last round another stream begins, which costs no privacy."
            )

    @property
    def rows(self) -> Floats:
        """``(T, min(b, T))``, read-only: C[t, t − j] at [t, j]; 0 where t < j."""
        return _minimised(self.rounds, self.bands)

    @property
    def num_blocks(self) -> int:
        """k: how often one unit takes part at most."""
        return -(-self.rounds // self.bands)

    @property
    def block_weights(self) -> Floats:
        """``(k,)``: the largest squared norm of a column, by block: what a unit's part counts there."""
        norms = _column_norms(self.rows) * (1.0 + _ROUNDING)
        starts = range(0, self.rounds, self.bands)
        return np.array([np.max(norms[start : start + self.bands]) for start in starts])

    @property
    def gain(self) -> float:
        """How many times smaller the running sums' error is than with independent noise of equal cost.

        The error is the root of the mean over the T running sums of their noise's variance; that of
        independent noise is √((T + 1)/2) · σ.
        """
        return float(np.sqrt((self.rounds + 1) / 2.0 / _mean_squared_error(self.rows)))


class CorrelatedNoise:
    """The rows of C⁻¹z, one after the other.

    Holds the last b − 1 rows: whoever has them and what was released has the sums without noise, so they are
    part of no ``repr`` and of no checkpoint.

    Parameters
    ----------
    matrix : BandedMatrix
        C; after its T rounds there is no more noise.
    """

    def __init__(self, matrix: BandedMatrix) -> None:
        self.matrix = matrix
        self._rows = matrix.rows
        self._past: deque[Floats] = deque(maxlen=matrix.bands - 1)
        self._round = 0

    def next(self, fresh: Floats) -> Floats:
        """Return the next row, given that of z: ``(d,)``, independent of all that were given before.

        Raises
        ------
        PreconditionError
            If the stream is over, or the size is not the one of the rows before.
        """
        if self._round == self.matrix.rounds:
            raise PreconditionError(
                f"banded matrix: rounds={self.matrix.rounds} are over; begin another stream for more."
            )
        if self._past and self._past[0].shape != fresh.shape:
            raise PreconditionError(
                f"banded matrix: noise of shape {fresh.shape} after {self._past[0].shape}; a stream is for "
                "one model."
            )
        weights = self._rows[self._round]
        row = np.array(fresh, dtype=np.float64)
        for weight, past in zip(weights[1:].tolist(), self._past, strict=False):
            row -= weight * past
        row /= weights[0]
        self._past.appendleft(row)
        self._round += 1
        return row.copy()

    def __repr__(self) -> str:
        return f"CorrelatedNoise({self.matrix!r}, round={self._round})"


@lru_cache(maxsize=16)
def _minimised(rounds: int, bands: int) -> Floats:
    """Return C by rows: the minimum from the truncated series of 1/√(1 − x) on."""
    from scipy.optimize import minimize

    bands = min(bands, rounds)
    blocks = np.arange(rounds) // bands
    series = np.cumprod([1.0, *((2 * j - 1) / (2 * j) for j in range(1, bands))])
    place = np.add.outer(np.arange(rounds), -np.arange(bands)) >= 0

    def matrix(point: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        raw = np.zeros((rounds, bands))
        raw[place] = point[: -num_blocks or None]
        norms = np.sqrt(_column_norms(raw))
        shares = np.exp(point[-num_blocks:] - np.max(point[-num_blocks:]))
        weights = shares * num_blocks / shares.sum()
        return raw, norms, weights, _by_column(raw, np.sqrt(weights)[blocks] / norms)

    def error(point: Floats) -> tuple[float, Floats]:
        """Return log ‖A·C⁻¹‖² (A: running sums) and its gradient −2·(A·C⁻¹)ᵀ(A·C⁻¹)·C⁻ᵀ, in ``point``."""
        raw, norms, weights, rows = matrix(point)
        inverse = _inverse(rows)
        sums = np.cumsum(inverse, axis=0)
        total = float(np.sum(sums**2))
        gradient = _bands_of(-2.0 * (sums.T @ sums) @ inverse.T, bands) / total
        scale = np.sqrt(weights)[blocks]
        unit = _by_column(raw, 1.0 / norms)
        along = _column_sums(unit * gradient)  # the part that only changes columns' norms
        by_raw = _by_column(gradient - _by_column(unit, along), scale / norms)
        by_weight = weights * np.bincount(blocks, along / (2.0 * scale), minlength=num_blocks)
        by_share = by_weight - weights * np.sum(by_weight) / num_blocks
        return np.log(total), np.concatenate([by_raw[place], by_share])

    num_blocks = int(blocks[-1]) + 1
    start = np.concatenate([np.broadcast_to(series, place.shape)[place], np.zeros(num_blocks)])
    found = minimize(error, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    rows = matrix(found)[3]
    assert np.all(rows[:, 0] > 0.0), "C can be inverted"
    rows.flags.writeable = False
    return rows


def _dense(rows: Floats) -> Floats:
    """Return the ``(T, T)`` matrix with these bands."""
    rounds, bands = rows.shape
    dense = np.zeros((rounds, rounds))
    for j in range(bands):
        dense[np.arange(j, rounds), np.arange(rounds - j)] = rows[j:, j]
    return dense


def _bands_of(dense: Floats, bands: int) -> Floats:
    """Return the bands of a ``(T, T)`` matrix by rows."""
    rounds = len(dense)
    rows = np.zeros((rounds, bands))
    for j in range(bands):
        rows[j:, j] = np.diagonal(dense, -j)
    return rows


def _column_sums(rows: Floats) -> Floats:
    """Return the sum of each column."""
    rounds, bands = rows.shape
    sums = np.zeros(rounds)
    for j in range(bands):
        sums[: rounds - j] += rows[j:, j]
    return sums


def _column_norms(rows: Floats) -> Floats:
    """Return the squared norm of each column."""
    return _column_sums(rows**2)


def _by_column(rows: Floats, factors: Floats) -> Floats:
    """Return the matrix with each column times its factor."""
    scaled = np.zeros_like(rows)
    for j in range(rows.shape[1]):
        scaled[j:, j] = rows[j:, j] * factors[: len(rows) - j]
    return scaled


def _inverse(rows: Floats) -> Floats:
    """Return C⁻¹."""
    from scipy.linalg import solve_triangular

    inverse: Any = solve_triangular(_dense(rows), np.eye(len(rows)), lower=True, check_finite=False)
    return np.asarray(inverse, dtype=np.float64)


def _mean_squared_error(rows: Floats) -> float:
    """Return the mean over all running sums of their noise's variance, for σ = 1."""
    return float(np.sum(np.cumsum(_inverse(rows), axis=0) ** 2) / len(rows))
