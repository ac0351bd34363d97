"""One step of DP-SGD as a release of :mod:`fl_plugins.privacy`, which does all the accounting."""

from fl_plugins.privacy import Everyone, Gaussian, NeighborRelation, Poisson, Release


def step_release(
    *, adjacency: str, sampling_rate: float, noise_multiplier: float, num_examples: int
) -> Release:
    """Return what one step makes public, unit record.

    No batch is ever cut (a larger one takes another pass), so under Poisson sampling ε does not depend on
    ``num_examples``.
    """
    sampling = (
        Everyone()
        if sampling_rate >= 1.0
        else Poisson(rate=sampling_rate, population=num_examples, max_cohort=num_examples)
    )
    return Release(
        mechanism=Gaussian(noise_multiplier=noise_multiplier),
        sampling=sampling,
        relation=NeighborRelation.of(unit="record", adjacency=adjacency),
    )
