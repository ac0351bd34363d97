"""How much noise a plan needs: the smallest multiplier that keeps ε over all its rounds."""

from collections.abc import Callable

from .errors import ConfigError
from .privacy import Accountant, Gaussian, Method, NeighborRelation, Release, Report, Sampling

_MOST_NOISE = 1e6
_ACCURACY = 1.0005
"""The multiplier is at most so many times the smallest; each step of the search costs an accounting."""


def best_report(accountant: Accountant, delta: float) -> Report:
    """Return what was spent by the best accounting; numerical distributions only where there is no exact form."""
    cheap = accountant.report(delta, pld=False)
    return cheap if Method.EXACT in cheap.by_method else accountant.report(delta)


def smallest_noise_multiplier(
    *, epsilon: float, delta: float, num_releases: int, sampling: Sampling, relation: NeighborRelation
) -> float:
    """Return a noise multiplier with which ``num_releases`` cost at most ``epsilon``, and little more than needed.

    Raises
    ------
    ConfigError
        If no noise is enough.
    """

    def spent(noise_multiplier: float, *, pld: bool) -> float:
        accountant = Accountant(relation)
        mechanism = Gaussian(noise_multiplier=noise_multiplier)
        release = Release(mechanism=mechanism, sampling=sampling, relation=relation)
        accountant.compose(release, num_releases)
        report = best_report(accountant, delta) if pld else accountant.report(delta, pld=False)
        return report.epsilon

    high = 1.0
    while spent(high, pld=False) > epsilon:
        high *= 2.0
        if high > _MOST_NOISE:
            raise ConfigError(
                f"privacy plan: epsilon={epsilon:g} at delta={delta:g} over {num_releases} releases needs a noise "
                f"multiplier above {_MOST_NOISE:g}; plan fewer rounds or a larger epsilon."
            )
    low = high / 2.0
    while spent(low, pld=False) <= epsilon:
        low, high = low / 2.0, low
    high = _narrowed(lambda z: spent(z, pld=False) <= epsilon, low, high, accuracy=1.01)
    # The better accounting needs less noise; a third less is more than it saves anywhere.
    low = high / 1.5
    return _narrowed(lambda z: spent(z, pld=True) <= epsilon, low, high, accuracy=_ACCURACY)


def _narrowed(enough: Callable[[float], bool], low: float, high: float, *, accuracy: float) -> float:
    """Return a noise multiplier that is enough, at most ``accuracy`` times the smallest in (low, high]."""
    while high > accuracy * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
