"""From a clipped sum to what is public: noise on the sum, a fixed denominator, the next clip norm."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fl_plugins.privacy import (
    CorrelatedNoise,
    NoiseSource,
    joint_noise_multiplier,
    remaining_noise_multiplier,
)
from fl_plugins.privacy.noise import add_gaussian, add_on_grid

from .clipped_sum import ClippedSum
from .dp_metrics import NoisedMetrics
from .dp_options import AdaptiveClip, Clip


@dataclass(frozen=True, kw_only=True)
class ClipState:
    """The clip norm of a round, and whether it has come down to the norms (or was never far above them)."""

    norm: float
    settled: bool = False


@dataclass(frozen=True, kw_only=True)
class NoisyMean:
    """How a clipped sum is made public.

    Parameters
    ----------
    clip : FixedClip or AdaptiveClip
        How the clip norm is found.
    update_noise : float
        Standard deviation of the noise on the sum, in clip norms; of the independent noise that it is made
        of, if it is correlated over the rounds.
    count_noise : float, optional
        Standard deviation of the noise on the sum of the bits; ``None`` for a fixed clip norm.
    expected_cohort, mean_weight : float
        The denominator is their product: public, whoever answers.
    metrics : NoisedMetrics, optional
        The metrics to release.
    metric_noise : float, optional
        Their noise multiplier.
    """

    clip: Clip
    update_noise: float
    count_noise: float | None
    expected_cohort: float
    mean_weight: float
    metrics: NoisedMetrics | None = None
    metric_noise: float | None = None

    @classmethod
    def planned(
        cls,
        clip: Clip,
        noise_multiplier: float,
        expected_cohort: float,
        mean_weight: float,
        metrics: NoisedMetrics | None = None,
    ) -> Self:
        """Return what has ``noise_multiplier`` in all, the count and the metrics included.

        Raises
        ------
        ConfigError
            If the metrics or the count alone need all of it.
        """
        metric_noise = None if metrics is None else metrics.multiplier(noise_multiplier)
        left = noise_multiplier
        if metric_noise is not None:
            left = remaining_noise_multiplier(noise_multiplier, metric_noise)
        update_noise, count_noise = clip.split(left, expected_cohort)
        return cls(
            clip=clip,
            update_noise=update_noise,
            count_noise=count_noise,
            expected_cohort=expected_cohort,
            mean_weight=mean_weight,
            metrics=metrics,
            metric_noise=metric_noise,
        )

    def noise_multiplier(self, weight: float = 1.0) -> float:
        """Return the multiplier of all that a round releases, where a client's update counts √weight."""
        beside = [] if self.count_noise is None else [2.0 * self.count_noise]
        if self.metric_noise is not None:
            beside.append(self.metric_noise)
        return joint_noise_multiplier(self.update_noise * weight**-0.5, *beside)

    def release_metrics(self, total: ClippedSum, source: NoiseSource) -> dict[str, float]:
        """Return the noisy means of the metrics that are named; none are otherwise."""
        if self.metrics is None or self.metric_noise is None:
            return {}
        return self.metrics.release(total.metric_total, self.metric_noise, self.expected_cohort, source)

    def release(
        self,
        state: ClipState,
        total: ClippedSum,
        source: NoiseSource,
        correlated: CorrelatedNoise | None = None,
    ) -> tuple[dict[str, NDArray[np.float64]] | None, ClipState]:
        """Return the noisy mean by key (``None``: no step is taken yet), and the next round's clip norm."""
        # The clip norm that was used, not the next one: the noise must fit what one client could change.
        noisy = _noised(total.total, self.update_noise * state.norm, source, correlated)
        if isinstance(self.clip, AdaptiveClip) and self.count_noise is not None:
            noisy_bits = total.bits + self.count_noise * float(source.normal(1)[0])
            below = self.clip.below(noisy_bits, self.expected_cohort)
            settled = state.settled or not self.clip.is_far_above(below)
            state = ClipState(norm=self.clip.follow(state.norm, below), settled=settled)
            if not settled:
                return None, state
        denominator = self.expected_cohort * self.mean_weight
        return {key: value / denominator for key, value in noisy.items()}, state


def _noised(
    total: dict[str, NDArray[np.float64]],
    std: float,
    source: NoiseSource,
    correlated: CorrelatedNoise | None,
) -> dict[str, NDArray[np.float64]]:
    """Return the sum plus noise, which goes on from the rounds before if it is ``correlated``."""
    if correlated is None:
        return add_gaussian(total, std, source)
    sizes = [value.size for value in total.values()]
    fresh = np.asarray(source.normal(sum(sizes)), dtype=np.float64)
    parts = iter(np.split(correlated.next(fresh) * std, np.cumsum(sizes)))
    return add_on_grid(total, std, lambda _: next(parts))
