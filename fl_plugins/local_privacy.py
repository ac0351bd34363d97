"""The noise of local differential privacy: what a client adds because it does not trust the server."""

from .checks import check_int, check_number
from .privacy import Budget, Everyone, NeighborRelation, Release
from .privacy.accounting import check_delta
from .privacy.calibration import plan

LOCAL = NeighborRelation.of(unit="client", adjacency="replace")
"""Any two data sets that one client may have."""


def local_release(*, epsilon: float, delta: float, max_rounds: int) -> Release:
    """Return what one reply may tell so that ``max_rounds`` of them together cost ``epsilon`` at ``delta``.

    The noise follows from the clip norm: two clipped updates are at most two clip norms apart, and nothing
    else is assumed. Composition is exact: μ = 2·√T/z for noise multiplier z.

    Raises
    ------
    ConfigError
        If ε, δ or the number of rounds is not one that means something.
    """
    check_number("local_dp", "epsilon", epsilon, minimum=0.0, open_below=True)
    check_delta("local_dp", delta)
    check_int("local_dp", "max_rounds", max_rounds, minimum=1)
    budget = Budget(epsilon=epsilon, delta=delta)
    return plan(budget, rounds=max_rounds, sampling=Everyone(), relation=LOCAL).release
