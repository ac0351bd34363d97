"""Attacks without a search or an estimate: what every rule has to survive first.

Notation: m honest updates of d elements, f = ``num_byzantine`` hostile ones. Every function returns
``(f, d)`` in the dtype of the honest updates.
"""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, StructureError
from ._checks import check_count, check_number, copies, honest_updates

NonFinite = Literal["nan", "inf", "-inf"]
"""What :func:`non_finite` sends."""


def sign_flip(honest: NDArray[Any], num_byzantine: int, *, scale: float = 10.0) -> NDArray[Any]:
    """Send ``-scale`` times the honest mean (Li et al. 2019, RSA, §5).

    >>> sign_flip(np.array([[1.0, 2.0], [3.0, 2.0]]), 1, scale=2.0)
    array([[-4., -4.]])
    """
    check_count(num_byzantine, attack="sign_flip")
    check_number(scale, attack="sign_flip", name="scale", minimum=0)
    values = honest_updates(honest, attack="sign_flip")
    return copies(-scale * values.mean(axis=0), num_byzantine, like=honest)


def gaussian_noise(
    honest: NDArray[Any], num_byzantine: int, *, stddev: float, rng: np.random.Generator
) -> NDArray[Any]:
    """Send N(0, stddev²) in every coordinate, drawn anew for every row (Blanchard et al. 2017, §5)."""
    check_count(num_byzantine, attack="gaussian_noise")
    check_number(stddev, attack="gaussian_noise", name="stddev", minimum=0)
    d = honest_updates(honest, attack="gaussian_noise").shape[1]
    with np.errstate(over="ignore"):
        return rng.normal(0.0, stddev, (num_byzantine, d)).astype(np.asarray(honest).dtype)


def zero(honest: NDArray[Any], num_byzantine: int) -> NDArray[Any]:
    """Send no change at all, which slows training down and wins at rules that like small updates."""
    return constant(honest, num_byzantine, value=0.0)


def constant(honest: NDArray[Any], num_byzantine: int, *, value: float) -> NDArray[Any]:
    """Send ``value`` in every coordinate."""
    check_count(num_byzantine, attack="constant")
    check_number(value, attack="constant", name="value")
    d = honest_updates(honest, attack="constant").shape[1]
    return copies(np.full(d, float(value)), num_byzantine, like=honest)


def non_finite(honest: NDArray[Any], num_byzantine: int, *, value: NonFinite = "nan") -> NDArray[Any]:
    """Send NaN or an infinity in every coordinate; one such row poisons a mean for good."""
    check_count(num_byzantine, attack="non_finite")
    if value not in get_args(NonFinite):
        raise ConfigError(
            f"non_finite: value={value!r} must be one of {', '.join(get_args(NonFinite))}; choose one."
        )
    d = honest_updates(honest, attack="non_finite").shape[1]
    return copies(np.full(d, float(value)), num_byzantine, like=honest)


def free_rider(honest: NDArray[Any], num_byzantine: int, *, previous: NDArray[Any] | None) -> NDArray[Any]:
    """Send what costs no training: the change of the global parameters in the last round.

    Lin et al. 2019 (Free-riders in Federated Learning: Attacks and Defenses, §3, "delta weights"). In the
    first round, ``previous=None``, it is zero: the global parameters themselves come back.
    """
    check_count(num_byzantine, attack="free_rider")
    d = honest_updates(honest, attack="free_rider").shape[1]
    row = np.zeros(d) if previous is None else np.asarray(previous, np.float64)
    if row.shape != (d,):
        raise StructureError(
            f"free_rider: previous has shape {row.shape} but ({d},) is needed; give one row."
        )
    return copies(row, num_byzantine, like=honest)


def sybil_copies(
    honest: NDArray[Any], num_byzantine: int, *, of: int = 0, scale: float = -1.0
) -> NDArray[Any]:
    """Send ``scale`` times one honest row, f times: a dense cluster (Fung et al. 2018, FoolsGold, §3).

    Raises
    ------
    ConfigError
        If there is no row ``of``.
    """
    check_count(num_byzantine, attack="sybil_copies")
    check_number(scale, attack="sybil_copies", name="scale")
    values = honest_updates(honest, attack="sybil_copies")
    check_count(of, attack="sybil_copies", name="of")
    if of >= len(values):
        raise ConfigError(f"sybil_copies: of={of} must be < m={len(values)}; choose an honest row.")
    return copies(scale * values[of], num_byzantine, like=honest)
