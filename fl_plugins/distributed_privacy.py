"""Secure aggregation of vectors with noise: what server and clients agree on, and what one sum costs.

The layer ``distributed_dp`` is secure aggregation with another encoding
(:class:`~fl_plugins.secagg.distributed_noise.DistributedNoise`). Its settings are announced like those of the
plain layer; scale and noise are derived from them on each side, so a client never takes a σ from a message.
All of them are in the hash that keys are bound to: clients that were told different ones share no masks.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from numpy.typing import NDArray

from .checks import check_int, check_number
from .errors import ConfigError, PolicyViolationError
from .privacy import Accountant, Budget, Everyone, NeighborRelation, NoiseSource, Release
from .privacy.calibration import smallest
from .records import Layout
from .secagg import DecodedSum, RoundParameters
from .secagg.distributed_noise import DistributedNoise, EncodedShare, Noise
from .secagg.graph import count_of
from .secagg.keys import tagged_hash
from .secure_round import DISTRIBUTED, SecureSettings

_MOST_NOISE = 1e4
"""Noise multiplier at which the search for a target ends: the ring's rounding costs what is missing."""


@dataclass(frozen=True, kw_only=True)
class NoisyMean:
    """How a client's update becomes ring words with noise, and the server's sum of them a mean.

    Parameters
    ----------
    noise : DistributedNoise
        Clipping, scale and noise.
    rotation_seed : bytes
        32 public bytes of this attempt.
    """

    noise: DistributedNoise
    rotation_seed: bytes

    @property
    def length(self) -> int:
        """Words of a vector."""
        return self.noise.length

    def encode(self, update: Iterable[NDArray[Any]]) -> EncodedShare:
        """Return a client's words, with noise from the operating system."""
        return self.noise.encode(update, rotation_seed=self.rotation_seed, source=NoiseSource())

    def decode(self, words: NDArray[Any], num_clients: int) -> DecodedSum:
        """Return the sum over the *largest* cohort: who is missing counts as zero, as in ``dp_fedavg``."""
        total = self.noise.decode(words, num_clients, rotation_seed=self.rotation_seed)
        return DecodedSum(
            num_clients=num_clients,
            weight=float(num_clients),
            clipped_fraction=None,
            metrics={},
            update=total.update / self.noise.cohort,
        )


@dataclass(frozen=True, kw_only=True)
class DistributedSettings(SecureSettings):
    """The settings of the layer, as they are announced; those of secure aggregation are among them.

    Parameters
    ----------
    mechanism : str
        ``"discrete_gaussian"`` or ``"skellam"``: the distribution of a client's share of the noise.
    noise_multiplier : float
        z: standard deviation of the noise on a sum of ``min_clients`` clients of whom ``corrupt`` tell
        theirs, in clip norms.
    clip_norm : float
        The largest L2 norm of an update; ``clip`` is the same number.
    max_cohort : int
        The most clients in a sum: the ring is sized for them, and the mean is over them.
    unit, adjacency : str
        Whom the noise is accounted for: ``"client"``, and ``"zero_out"`` or ``"replace"``.
    """

    layer: ClassVar[str] = DISTRIBUTED

    mechanism: Literal["discrete_gaussian", "skellam"] = "discrete_gaussian"
    noise_multiplier: float
    clip_norm: float
    max_cohort: int
    unit: Literal["client"]
    adjacency: Literal["zero_out", "replace"]

    def __post_init__(self) -> None:
        check_number(self.layer, "clip_norm", self.clip_norm, minimum=0.0, open_below=True)
        super().__post_init__()
        for name, choices in (
            ("mechanism", [noise.value for noise in Noise]),
            ("unit", ["client"]),
            ("adjacency", ["zero_out", "replace"]),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"{self.layer}: {name}={getattr(self, name)!r}, but it is one of {choices}"
                    f"{_WHY.get(name, '')}."
                )
        check_number(self.layer, "noise_multiplier", self.noise_multiplier, minimum=0.0, open_below=True)
        check_int(self.layer, "max_cohort", self.max_cohort, minimum=self.min_clients)
        if self.num_noise_shares < 2:
            raise ConfigError(
                f"{self.layer}: min_clients={self.min_clients} with {self.num_colluders} colluders (corrupt="
                f"{self.corrupt:g} of max_cohort={self.max_cohort}), but at least 2 must be left whose noise "
                "nobody else knows; raise min_clients, or lower corrupt."
            )
        fixed = {"clip": self.clip_norm, "max_weight": 1.0, "weighting": "uniform"}
        fixed |= {"metrics": (), "evaluate": ()}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{self.layer}: {name}={getattr(self, name)!r}, but it is {value!r}: every client counts "
                    "the same, and nothing but the noisy update is released."
                )

    @property
    def relation(self) -> NeighborRelation:
        """Unit and adjacency."""
        return NeighborRelation.of(unit=self.unit, adjacency=self.adjacency)

    @property
    def num_colluders(self) -> int:
        """How many shares of the noise the adversary may know: ``corrupt`` of the largest cohort."""
        return count_of(self.corrupt, self.max_cohort)

    @property
    def num_noise_shares(self) -> int:
        """The fewest shares of the noise in a sum that the adversary does not know."""
        return self.min_clients - self.num_colluders

    def noise(self, num_entries: int) -> DistributedNoise:
        """Return the encoding of a model with so many entries.

        Raises
        ------
        ConfigError
            If the ring leaves a share of the noise too few grid steps.
        """
        return DistributedNoise(
            noise=Noise(self.mechanism),
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.clip_norm,
            num_entries=num_entries,
            num_bits=self.num_bits,
            cohort=self.max_cohort,
            min_survivors=self.min_clients,
            max_colluders=self.num_colluders,
        )

    def release(self, num_entries: int) -> Release:
        """Return what one sum makes public, whoever of at least ``min_clients`` is in it."""
        mechanism = self.noise(num_entries).mechanism
        return Release(mechanism=mechanism, sampling=Everyone(), relation=self.relation)

    def planned(self, budget: Budget, *, rounds: int, num_entries: int) -> Self:
        """Return the settings with the smallest noise of which ``rounds`` sums stay within ``budget``.

        Raises
        ------
        ConfigError
            If no amount of noise does it, for the ring is too small.
        """

        def kept(noise_multiplier: float) -> bool:
            if noise_multiplier > _MOST_NOISE:
                raise ConfigError(
                    f"{self.layer}: target_epsilon={budget.epsilon:g} for {rounds} rounds is not reached by "
                    f"any noise in a ring of {self.num_bits} bits; use 32 bits, fewer rounds or a larger "
                    "target."
                )
            try:
                release = replace(self, noise_multiplier=noise_multiplier).release(num_entries)
            except ConfigError:
                return False  # too little noise for the grid
            accountant = Accountant(self.relation)
            accountant.compose(release, rounds)
            return accountant.report(budget.delta, pld=False).epsilon <= budget.epsilon

        return replace(self, noise_multiplier=smallest(kept))

    def num_words(self, cohort: int, layout: Layout) -> int:  # noqa: ARG002  the ring is sized for the largest
        """Return how many ring words a client's vector has."""
        return self.noise(layout.size).length

    def encoding(self, parameters: RoundParameters, layout: Layout) -> NoisyMean:
        """Return how vectors of one attempt are made and read."""
        seed = tagged_hash(b"rotation", parameters.context)
        return NoisyMean(noise=self.noise(layout.size), rotation_seed=seed)

    def layout_digest(self, layout: Layout) -> bytes:
        """Return the hash of what a vector holds, the noise included."""
        names = ("mechanism", "noise_multiplier", "clip_norm", "max_cohort", "unit", "adjacency")
        meaning = json.dumps([self.layer, *(getattr(self, name) for name in names)])
        return tagged_hash(b"flower-noisy-layout", layout.fingerprint.encode(), meaning.encode())

    def check_announces(self, parameters: RoundParameters) -> None:
        """Refuse parameters of an attempt that are not those announced, on which nodes' policies are.

        Raises
        ------
        PolicyViolationError
            If one differs, ``min_clients`` is lower, or the cohort larger.
        """
        super().check_announces(parameters)
        if parameters.cohort > self.max_cohort:
            raise PolicyViolationError(
                f"{self.layer}: the round has cohort={parameters.cohort}, but the message announces "
                f"max_cohort={self.max_cohort}; nothing was sent."
            )


_WHY = {
    "unit": ": what is clipped is all that one client sends",
    "adjacency": ": a client that is added or removed takes its share of the noise along",
}
