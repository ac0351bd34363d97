"""From a clipped sum to what is public: noise on the sum, a fixed denominator, the next clip norm."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fl_plugins.privacy import NoiseSource
from fl_plugins.privacy.noise import add_gaussian

from .clipped_sum import ClippedSum
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
        Standard deviation of the noise on the sum, in clip norms.
    count_noise : float, optional
        Standard deviation of the noise on the sum of the bits; ``None`` for a fixed clip norm.
    expected_cohort, mean_weight : float
        The denominator is their product: public, whoever answers.
    """

    clip: Clip
    update_noise: float
    count_noise: float | None
    expected_cohort: float
    mean_weight: float

    @classmethod
    def planned(cls, clip: Clip, noise_multiplier: float, expected_cohort: float, mean_weight: float) -> Self:
        """Return what has ``noise_multiplier`` in all, the count included."""
        update_noise, count_noise = clip.split(noise_multiplier, expected_cohort)
        return cls(
            clip=clip,
            update_noise=update_noise,
            count_noise=count_noise,
            expected_cohort=expected_cohort,
            mean_weight=mean_weight,
        )

    def release(
        self, state: ClipState, total: ClippedSum, source: NoiseSource
    ) -> tuple[dict[str, NDArray[np.float64]] | None, ClipState]:
        """Return the noisy mean by key (``None``: no step is taken yet), and the next round's clip norm."""
        # The clip norm that was used, not the next one: the noise must fit what one client could change.
        noisy = add_gaussian(total.total, self.update_noise * state.norm, source)
        if isinstance(self.clip, AdaptiveClip) and self.count_noise is not None:
            noisy_bits = total.bits + self.count_noise * float(source.normal(1)[0])
            below = self.clip.below(noisy_bits, self.expected_cohort)
            settled = state.settled or not self.clip.is_far_above(below)
            state = ClipState(norm=self.clip.follow(state.norm, below), settled=settled)
            if not settled:
                return None, state
        denominator = self.expected_cohort * self.mean_weight
        return {key: value / denominator for key, value in noisy.items()}, state
