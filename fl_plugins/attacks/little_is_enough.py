"""A Little Is Enough (Baruch et al. 2019, Algorithm 3): stay inside the honest spread, all on one side.

Notation: n clients of which f are hostile; μ and σ the honest updates' mean and standard deviation per
coordinate; z how many standard deviations the hostile ones go away from the mean.
"""

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import PreconditionError
from ._checks import check_count, check_number, copies, honest_updates


def z_max(n: int, num_byzantine: int) -> float:
    """Return the paper's z: s = ⌊n/2 + 1⌋ − f honest supporters are enough for a majority.

    z is the largest value with Φ(z) <= (n − f − s)/(n − f): so many honest clients, in expectation, are
    farther from the mean than the hostile ones. It is negative where f is too small for the argument (f = 1
    of 10): then search the parameter instead.

    >>> round(z_max(50, 24), 2)
    1.43

    Raises
    ------
    PreconditionError
        If f is 0, or hostile clients are a majority by themselves.
    """
    check_count(n, attack="little_is_enough", name="n", minimum=1)
    check_count(num_byzantine, attack="little_is_enough", minimum=1)
    supporters = n // 2 + 1 - num_byzantine
    if supporters < 1 or n - num_byzantine <= supporters:
        raise PreconditionError(
            f"little_is_enough: n={n} clients with num_byzantine={num_byzantine} need {supporters} honest "
            f"supporters of {n - num_byzantine}, but z is defined for 1 <= supporters < n - f; give z."
        )
    return NormalDist().inv_cdf((n - num_byzantine - supporters) / (n - num_byzantine))


def little_is_enough(honest: NDArray[Any], num_byzantine: int, *, z: float | None = None) -> NDArray[Any]:
    """Send μ − z·σ; σ is the population's (divided by m).

    Parameters
    ----------
    honest : NDArray
        ``(m, d)`` honest updates.
    num_byzantine : int
        f, rows to send.
    z : float, optional
        By default :func:`z_max` of n = m + f.
    """
    check_count(num_byzantine, attack="little_is_enough")
    values = honest_updates(honest, attack="little_is_enough")
    if z is None:
        z = z_max(len(values) + num_byzantine, num_byzantine) if num_byzantine else 0.0
    check_number(z, attack="little_is_enough", name="z")
    return copies(np.mean(values, axis=0) - z * np.std(values, axis=0), num_byzantine, like=honest)
