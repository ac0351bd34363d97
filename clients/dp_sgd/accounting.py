"""What the steps of one training cost."""

import functools


@functools.lru_cache(maxsize=1024)
def epsilon(*, sampling_rate: float, noise_multiplier: float, num_steps: int, delta: float) -> float:
    """Return ε at ``delta`` of ``num_steps`` Poisson-sampled Gaussian steps, by Rényi accounting.

    It holds where a neighbour has one record more or less, or one that contributes nothing.
    """
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    step = PoissonSampledDpEvent(sampling_rate, GaussianDpEvent(noise_multiplier))
    accountant.compose(step, num_steps)
    return float(accountant.get_epsilon(delta))
