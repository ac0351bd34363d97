"""Differentially private federated averaging (McMahan et al. 2018) around any strategy with a plain mean.

Here is what it is configured with; what it does in a round is in :mod:`.private_mean`.
"""

from typing import Annotated, Literal

from fl_plugins.checks import check_number
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.privacy import (
    BandedMatrix,
    Everyone,
    Gaussian,
    Poisson,
    Release,
    Sampling,
)
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.spec import Spec

from .base import FederatedStrategy
from .dp_metrics import NoisedMetrics
from .dp_options import (
    OWNER,
    BandedNoise,
    Clip,
    num_releases,
    read_clip,
    read_metrics,
    read_noise,
    read_relation,
    read_sampling,
)
from .noisy_mean import NoisyMean
from .privacy_budget import PrivacyBudget, planned_noise_multiplier
from .private_mean import PrivateMean, PrivateOptions
from .private_rounds import PrivateRounds
from .wrapping import check_plain_mean


@register(
    Kind.STRATEGY,
    "dp_fedavg",
    paper="McMahan et al. 2018, Learning Differentially Private Recurrent Language Models",
    contract=Contract(access=Access.SUM, weighting=Weighting.UNIFORM),
)
class DpFedAvg(PrivateMean):
    """Protect every client's whole contribution with central differential privacy, under a budget.

    The server is trusted with the updates; who sees the released models (clients, the public) learns little
    of any one client. ``dp_fedavg(fedavg(weighting="uniform"), unit="client", adjacency="add_remove",
    population=1000, sampling=poisson(rate=0.05), clip_norm=0.5, noise_multiplier=1.0, delta=1e-5)``.

    Parameters
    ----------
    inner : FederatedStrategy
        A strategy whose rule is the plain mean, with its server optimizer.
    unit : str
        Whose data are protected; only ``"client"`` is: all that one client holds.
    adjacency : str
        ``"add_remove"``, ``"zero_out"`` or ``"replace"``: how two neighbouring runs differ in one client.
    population : int
        N: how many clients there are at most. It is public and fixed, and more are refused.
    delta : float
        The δ that ε is for; less than 1/N.
    sampling : str
        ``everyone()``, ``poisson(rate=0.05)``, ``fixed_size(size=50)``, or ``min_separation(size=50,
        rounds=16)``, where no client returns before so many rounds; the accounting follows from it.
    clip_norm : float, optional
        The largest norm of an update that is left as it is; or give ``clip``.
    clip : str, optional
        ``adaptive(initial=0.1, quantile=0.5, learning_rate=0.2)``: the clip norm follows a quantile of the
        norms.
    noise : str
        ``independent()``, or with ``min_separation`` ``banded_matrix(rounds=64)``: noise that cancels out
        over so many rounds, by default ``num_rounds``.
    metrics : str, optional
        ``noised(names=('loss',), upper=(4.0,))``: metrics of the clients to release, clipped to their ranges
        and noised; their cost is a part of ``noise_multiplier``. By default none is released.
    per_layer : bool
        Clip each of the L arrays to clip_norm/√L instead of the whole; the sum moves by at most one clip norm
        too.
    noise_multiplier : float, optional
        z: standard deviation of the noise on the sum, in clip norms; or give ``target_epsilon``. Of
        correlated noise: of the independent noise that it is made of.
    target_epsilon : float, optional
        ε that ``num_rounds`` rounds may cost in all: the smallest z that does it is used, and it is the
        budget.
    num_rounds : int, optional
        Rounds that ``target_epsilon`` is for.
    max_epsilon : float, optional
        The budget: the run ends in good order before the round that would exceed it.
    min_replies : int
        End the run if fewer sampled clients send anything; the round counts as spent. Whether the run ended
        is then visible, which is not covered by ε: give more than 0 only if it may be public who is
        reachable.
    max_examples : int, optional
        For an inner strategy that weights by examples: a client weighs its claim, at most this, over this.
    mean_weight : float
        With ``max_examples``: a public guess of the mean weight, which the denominator is multiplied by.
    untrained_arrays : str
        What to do with arrays that are not trained (integers, normalisation statistics): ``"refuse"`` the
        model, or ``"keep"`` them at their initial values.
    unprotected_metrics : bool
        Give out the clients' own metrics, which no noise protects; by default they are withheld.
    insecure_seed : int, optional
        Draw cohorts and noise from this seed, for tests and comparisons: ε is then void, and all say so.

    Guarantees
    ----------
    - What is released in a round is a function of a Gaussian release with ``noise_multiplier``, sampled as
      accounted: parameters, next clip norm, and of the clients' metrics only those that are named.
    - A round is charged before its messages leave, under ``min_separation`` a whole block of rounds. There is
      no second attempt: a round is what it is.
    - Correlated noise is never on disk: a resumed run begins another stream of it, and is charged for it.

    Raises
    ------
    ContractError
        If the sensitivity of the inner strategy is not known.
    ConfigError
        If the combination has no accounting, or something is missing.
    """

    def __init__(
        self,
        inner: Annotated[FederatedStrategy, PluginKind(Kind.STRATEGY)],
        *,
        unit: str,
        adjacency: str,
        population: int,
        delta: float,
        sampling: Spec | str | Sampling = "everyone",
        clip_norm: float | None = None,
        clip: Spec | str | Clip | None = None,
        noise: Spec | str | BandedMatrix | BandedNoise = "independent",
        metrics: Spec | str | NoisedMetrics | None = None,
        noise_multiplier: float | None = None,
        target_epsilon: float | None = None,
        num_rounds: int | None = None,
        max_epsilon: float | None = None,
        min_replies: int = 0,
        per_layer: bool = False,
        max_examples: int | None = None,
        mean_weight: float = 1.0,
        untrained_arrays: Literal["refuse", "keep"] = "refuse",
        unprotected_metrics: bool = False,
        insecure_seed: int | None = None,
    ) -> None:
        check_plain_mean(OWNER, inner, may_weight=max_examples is not None)
        given = PrivateOptions(
            population=population,
            min_replies=min_replies,
            per_layer=per_layer,
            max_examples=max_examples,
            mean_weight=mean_weight,
            untrained_arrays=untrained_arrays,
            unprotected_metrics=unprotected_metrics,
            insecure_seed=insecure_seed,
        )
        check_number(OWNER, "delta", delta, minimum=0.0, maximum=1.0 / population, open_below=True)
        relation, chosen = read_relation(unit, adjacency), read_sampling(sampling, population)
        clipping = read_clip(clip, clip_norm)
        matrix = read_noise(noise, chosen, clipping, num_rounds)
        multiplier = planned_noise_multiplier(
            OWNER,
            relation,
            chosen,
            delta,
            noise_multiplier=noise_multiplier,
            target_epsilon=target_epsilon,
            num_rounds=None if num_rounds is None else num_releases(num_rounds, chosen, matrix),
        )
        release = Release(
            mechanism=Gaussian(noise_multiplier=multiplier),
            sampling=chosen,
            relation=relation,
            secure=insecure_seed is None,
        )
        mean = NoisyMean.planned(
            clipping, multiplier, _expected(chosen, population), mean_weight, read_metrics(metrics)
        )
        given.check(inner.weighting, mean, examples_key=inner.settings.weighted_by_key)
        budget = PrivacyBudget(
            OWNER,
            release,
            population=population,
            delta=delta,
            max_epsilon=target_epsilon if max_epsilon is None else max_epsilon,
        )
        rounds = PrivateRounds(OWNER, release, matrix=matrix, mean=mean, budget=budget)
        super().__init__(inner, given, release=release, mean=mean, rounds=rounds, budget=budget)
        self.clip, self.matrix = clipping, matrix

    def describe(self) -> str:
        """Return one line that identifies the guarantee, the rule and every setting."""
        parts = [f"{self.release!r}", repr(self.budget), repr(self.clip), repr(self.given)]
        if self.matrix is not None:
            parts.append(repr(self.matrix))
        if self.mean.metrics is not None:
            parts.append(repr(self.mean.metrics))
        return f"{super().describe()[:-1]}, {', '.join(parts)})"


def _expected(sampling: Sampling, population: int) -> float:
    """Return how many clients are asked on average."""
    if isinstance(sampling, Poisson):
        return sampling.rate * population
    return float(population if isinstance(sampling, Everyone) else sampling.size)
