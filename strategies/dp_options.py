"""What of a private strategy is given as a nested text: sampling, clip norm, noise, metrics.

These are no plugins: a sampling is only as good as its accounting, which a third party cannot register.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from fl_plugins.checks import check_int, check_number
from fl_plugins.contracts import Weighting
from fl_plugins.errors import ConfigError, ConfigTypeError
from fl_plugins.privacy import (
    BandedMatrix,
    Everyone,
    FixedSize,
    MinSeparation,
    NeighborRelation,
    Poisson,
    Sampling,
    Unit,
    joint_noise_multiplier,
    remaining_noise_multiplier,
)
from fl_plugins.spec import Spec, parse

from .dp_metrics import NoisedMetrics

Made = TypeVar("Made")

OWNER = "dp_fedavg"

COUNT_NOISE_PART = 20.0
"""The count's noise is at least this part of the expected cohort: the quantile is then known to ±5 points."""

LEAST_COUNT_NOISE = 1.64
"""In noise multipliers: with the count's noise so large, the updates' noise grows by 5 % at most."""


_CUT_PROBABILITY = 1e-15
"""Of a Poisson cohort above its cap, which is at the mean plus five standard deviations or higher."""


@dataclass(frozen=True, kw_only=True)
class FixedClip:
    """One clip norm for the whole run.

    Parameters
    ----------
    norm : float
        The largest L2 norm of an update that is left as it is, > 0.
    """

    name: ClassVar[str] = "fixed"

    norm: float

    def __post_init__(self) -> None:
        check_number(OWNER, "clip_norm", self.norm, minimum=0.0, open_below=True)

    @property
    def initial(self) -> float:
        """The clip norm of round 1."""
        return self.norm

    def split(self, noise_multiplier: float, expected_cohort: float) -> tuple[float, float | None]:  # noqa: ARG002
        """Return the noise multiplier of the updates, and the standard deviation of the count's (none)."""
        return noise_multiplier, None


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """The clip norm follows a quantile of the updates' norms (Andrew et al. 2021, Algorithm 1).

    Every client also gives one bit, ½ if its norm is at most the clip norm and −½ if not. The noisy mean of
    the bits says which part of the norms is below; where that is more than ``quantile``, the next clip norm
    is smaller. The bits' cost is part of the noise multiplier that is accounted.

    One thing is not in the paper: a run that starts with a clip norm far above all norms takes no step until
    the noisy bits say that some norms are above. Noise in proportion to such a clip norm would do more damage
    than the rest of the run can mend. The bits are public by then, so what follows from them costs no
    privacy.

    Parameters
    ----------
    initial : float
        The clip norm of round 1, > 0.
    quantile : float
        Which quantile to follow, in (0, 1).
    learning_rate : float
        Size of the steps on the logarithm of the clip norm, > 0.
    count_noise : float, optional
        Standard deviation of the noise on the sum of the bits. By default a twentieth of the expected cohort,
        or 1.64 noise multipliers if that is more: the noise on the updates is then at most 5 % larger than
        without.
    """

    name: ClassVar[str] = "adaptive"

    initial: float
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        owner = f"{OWNER}: adaptive"
        check_number(owner, "initial", self.initial, minimum=0.0, open_below=True)
        check_number(owner, "quantile", self.quantile, minimum=0.0, maximum=1.0, open_below=True)
        if self.quantile == 1.0:
            raise ConfigError(f"{owner}: quantile=1 would let the clip norm grow for ever; give less than 1.")
        check_number(owner, "learning_rate", self.learning_rate, minimum=0.0, open_below=True)
        if self.count_noise is not None:
            check_number(owner, "count_noise", self.count_noise, minimum=0.0, open_below=True)

    def split(self, noise_multiplier: float, expected_cohort: float) -> tuple[float, float | None]:
        """Return the noise multiplier of the updates, and the standard deviation of the count's noise.

        The bits are ±½, so one client moves their sum by ½ where it moves that of the updates by one clip
        norm; together they are one Gaussian release with ``noise_multiplier``.

        Raises
        ------
        ConfigError
            If the count alone needs all of ``noise_multiplier``.
        """
        wanted = max(expected_cohort / COUNT_NOISE_PART, LEAST_COUNT_NOISE * noise_multiplier)
        count_noise = wanted if self.count_noise is None else float(self.count_noise)
        updates = remaining_noise_multiplier(noise_multiplier, 2.0 * count_noise)
        joint = joint_noise_multiplier(updates, 2.0 * count_noise)
        assert math.isclose(joint, noise_multiplier), "the two releases are the one accounted"
        return updates, count_noise

    def below(self, noisy_bits: float, expected_cohort: float) -> float:
        """Return which part of the norms is at most the clip norm, from the noisy sum of centred bits."""
        return noisy_bits / expected_cohort + 0.5

    def follow(self, clip_norm: float, below: float) -> float:
        """Return the next round's clip norm.

        >>> rule = AdaptiveClip(initial=1.0)
        >>> rule.follow(1.0, below=0.9) < 1.0 < rule.follow(1.0, below=0.1)
        True
        """
        return clip_norm * math.exp(-self.learning_rate * (below - self.quantile))

    def is_far_above(self, below: float) -> bool:
        """Whether hardly a norm is above the clip norm: fewer than a fifth of those that are meant to be."""
        return 1.0 - below < (1.0 - self.quantile) / 5.0


Clip = FixedClip | AdaptiveClip


@dataclass(frozen=True, kw_only=True)
class BandedNoise:
    """Noise that cancels out over the rounds, see :mod:`fl_plugins.privacy.matrix`.

    Parameters
    ----------
    rounds : int, optional
        How many rounds are one stream, over which the noise is best: by default ``num_rounds``. The bands are
        the rounds of ``min_separation``.
    """

    name: ClassVar[str] = "banded_matrix"

    rounds: int | None = None


def read_noise(
    given: "BandedMatrix | BandedNoise | Spec | str", sampling: Sampling, clip: Clip, num_rounds: int | None
) -> BandedMatrix | None:
    """Return the matrix of ``banded_matrix(rounds=…)``; ``None`` for independent noise.

    Raises
    ------
    ConfigError, ConfigTypeError
        If it is neither, or noise over the rounds does not go with the sampling or the clip norm.
    """
    kinds: Mapping[str, Callable[..., BandedNoise | None]] = {
        "independent": lambda: None,
        "banded_matrix": BandedNoise,
    }
    noise = given if isinstance(given, BandedMatrix | BandedNoise) else _made("noise", given, kinds)
    if noise is None:
        return None
    if not isinstance(sampling, MinSeparation):
        raise ConfigError(
            f"{OWNER}: noise=banded_matrix, but the sampling is {sampling}, where a client can take part in "
            "rounds that are close; give sampling=min_separation(size=…, rounds=…)."
        )
    if isinstance(clip, AdaptiveClip):
        raise ConfigError(
            f"{OWNER}: noise=banded_matrix takes back noise of earlier rounds, which it cannot when the clip "
            "norm, and so the noise, has changed since; give clip_norm."
        )
    rounds = noise.rounds if noise.rounds is not None else num_rounds
    if rounds is None:
        raise ConfigError(f"{OWNER}: noise=banded_matrix is made for a number of rounds; give rounds.")
    matrix = BandedMatrix(rounds=rounds, bands=sampling.rounds)
    if isinstance(given, BandedMatrix) and given != matrix:
        raise ConfigError(
            f"{OWNER}: noise={given}, but the sampling is {sampling}; give bands={sampling.rounds}."
        )
    return matrix


def num_releases(num_rounds: int, sampling: Sampling, matrix: BandedMatrix | None) -> int:
    """Return how many releases of weight 1 so many rounds cost.

    Raises
    ------
    ConfigError
        If they end within a stream of correlated noise, whose first blocks weigh more than its last.
    """
    check_int(OWNER, "num_rounds", num_rounds, minimum=1)
    if not isinstance(sampling, MinSeparation):
        return num_rounds
    if matrix is None:
        return -(-num_rounds // sampling.rounds)
    if num_rounds % matrix.rounds:
        raise ConfigError(
            f"{OWNER}: num_rounds={num_rounds} is no multiple of the noise's rounds={matrix.rounds}; give "
            "one that is, or leave rounds out."
        )
    return num_rounds // matrix.rounds * matrix.num_blocks


def read_metrics(given: "NoisedMetrics | Spec | str | None") -> NoisedMetrics | None:
    """Return which metrics are released: those of ``noised(names=…, upper=…)``, or none."""
    if given is None or isinstance(given, NoisedMetrics):
        return given
    return _made("metrics", given, {"noised": NoisedMetrics})


def read_sampling(given: "Sampling | Spec | str", population: int) -> Sampling:
    """Return the sampling that ``everyone()``, ``poisson(rate=…)`` or ``fixed_size(size=…)`` names.

    Raises
    ------
    ConfigError, ConfigTypeError
        If it is none of these, or its population is another than ``population``.
    """
    if isinstance(given, Everyone):
        return given
    if isinstance(given, Poisson | FixedSize | MinSeparation):
        if given.population != population:
            raise ConfigError(
                f"{OWNER}: the sampling is for population={given.population}, but population={population}; "
                "give both the same."
            )
        return given
    kinds: Mapping[str, Callable[..., Sampling]] = {
        "everyone": Everyone,
        "poisson": Poisson,
        "fixed_size": FixedSize,
        "min_separation": MinSeparation,
    }
    sampling = _made("sampling", given, kinds, population=population)
    return _rarely_cut(sampling) if isinstance(sampling, Poisson) else sampling


def _rarely_cut(sampling: Poisson) -> Poisson:
    """Return the sampling with a cap that is so seldom reached that cutting costs no ε in any run.

    Replies are summed as they arrive, so a large cohort needs time, not memory.
    """
    from scipy.stats import binom

    least = int(binom.isf(_CUT_PROBABILITY, sampling.population, sampling.rate)) + 1
    return replace(sampling, max_cohort=min(max(sampling.cap, least), sampling.population))


def read_clip(given: "Clip | Spec | str | None", clip_norm: float | None) -> Clip:
    """Return the clip that exactly one of ``clip_norm`` and ``clip=adaptive(initial=…)`` gives.

    Raises
    ------
    ConfigError, ConfigTypeError
        If both or none is given, or the text is none that is known.
    """
    if (given is None) == (clip_norm is None):
        raise ConfigError(
            f"{OWNER}: clip_norm={clip_norm} and clip={given!s}, but exactly one of them bounds what a "
            'client changes; give clip_norm=0.5, or clip="adaptive(initial=0.1)".'
        )
    if given is None:
        return FixedClip(norm=clip_norm if clip_norm is not None else math.nan)
    if isinstance(given, FixedClip | AdaptiveClip):
        return given
    return _made("clip", given, {"adaptive": AdaptiveClip})


def read_relation(unit: str, adjacency: str) -> NeighborRelation:
    """Return the neighbour relation, which must be one for clients."""
    relation = NeighborRelation.of(unit=unit, adjacency=adjacency)
    if relation.unit is not Unit.CLIENT:
        raise ConfigError(
            f"{OWNER}: unit={unit!r}, but clipping whole updates protects clients; an ε for clients under "
            "adjacency='replace' covers each of their records, and for more exact accounting of records "
            "train with differentially private SGD at the clients."
        )
    return relation


def check_weights(weighting: Weighting, max_examples: int | None, mean_weight: float) -> None:
    """Check that the public bound on the weights goes with the inner strategy's weighting."""
    check_number(OWNER, "mean_weight", mean_weight, minimum=0.0, maximum=1.0, open_below=True)
    if max_examples is None:
        if mean_weight != 1.0:
            raise ConfigError(
                f"{OWNER}: mean_weight={mean_weight}, but all weights are 1 without max_examples."
            )
        return
    check_int(OWNER, "max_examples", max_examples, minimum=1)
    if weighting is not Weighting.EXAMPLES:
        raise ConfigError(
            f"{OWNER}: max_examples={max_examples}, but the inner strategy has "
            f'weighting="{weighting.value}"; '
            'give fedavg(weighting="examples"), or leave max_examples out.'
        )


def _made(name: str, given: object, kinds: Mapping[str, Callable[..., Made]], **context: Any) -> Made:
    """Build what a nested text names."""
    if not isinstance(given, str | Spec):
        raise ConfigTypeError(f"{OWNER}: {name}={given!r}; give one of {', '.join(map(_form, kinds))}.")
    spec = parse(given) if isinstance(given, str) else given
    kind = kinds.get(spec.name)
    arguments = dict(spec.kwargs)
    known = set() if kind is None else set(inspect.signature(kind).parameters) - context.keys()
    if kind is None or spec.args or spec.owner is not None or not arguments.keys() <= known:
        forms = ", ".join(f"{each}({', '.join(_parameters(kinds[each], context))})" for each in kinds)
        raise ConfigError(f"{OWNER}: {name}={given!s}, but it is one of {forms}, with arguments by name.")
    used = {key: value for key, value in context.items() if key in inspect.signature(kind).parameters}
    try:
        return kind(**arguments, **used)
    except TypeError as error:
        if isinstance(error, ConfigTypeError):
            raise
        raise ConfigError(f"{OWNER}: {name}={given!s}: {error}.") from None


def _parameters(kind: Callable[..., Any], context: Mapping[str, Any]) -> list[str]:
    """Return the parameters that a text may give."""
    return [f"{key}=…" for key in inspect.signature(kind).parameters if key not in context]


def _form(name: str) -> str:
    """Return a text's beginning."""
    return f'"{name}(…)"'
