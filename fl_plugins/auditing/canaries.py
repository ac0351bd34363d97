"""One-run audit of a private strategy: canary clients through its own rounds, on a grid in this process.

Canary i is a client whose update has a direction of its own, eᵢ, and is so long that it is clipped to exactly
the clip norm. A secret fair coin, the same in all rounds, says which of two things it does:

==========  ==================  ==========================================
adjacency   heads               tails
==========  ==================  ==========================================
add_remove  sends the update    takes no part: it answers with an error
zero_out    sends the update    sends a zero update
replace     sends the update    sends the opposite
==========  ==================  ==========================================

The adversary knows everything but coins, cohorts and noise, and sees every model. Two further runs without
canaries tell whether the noise repeats itself (a seed); if so it is subtracted. That choice depends on no
coin, so that the bound stays valid.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from .. import wire
from ..apps.config import RunConfig
from ..apps.layers import layers_mod
from ..checks import check_number
from ..errors import ConfigError, ContractError
from ..privacy import Accountant, Adjacency, Everyone, FixedSize, Gaussian, NoiseSource, Poisson, Release
from ..records import from_named, to_named
from ..run_options import ManagedStrategy, RunOptions
from ._grid import AuditGrid, quiet
from .findings import Finding

Floats = NDArray[np.float64]

_KEY = "params/w"
_FAR = 1e9
"""Length of a canary's update in clip norms, before it is clipped."""

_REPEATS = 0.9
"""Noise that repeats itself differs between two runs by less than this part of itself; fresh noise by √2."""

_MAX_CLAIM = 1_000_000
"""Examples that a canary claims, so that a strategy which weights by a public bound counts it in full."""


@runtime_checkable
class PrivateStrategy(ManagedStrategy, Protocol):
    """What an audit asks of a strategy: what it accounts for a round, and the size of what it sums."""

    release: Release
    server_optimizer: Any

    @property
    def population(self) -> int:
        """How many clients there are at most."""
        ...

    @property
    def mean_weight(self) -> float:
        """What a client counts for on average."""
        ...

    @property
    def clip_norm(self) -> float:
        """The clip norm of the next round."""
        ...

    @property
    def expected_cohort(self) -> float:
        """What the sum is divided by, with ``mean_weight``."""
        ...


class _Seen(NamedTuple):
    """What one run released: noisy sums in clip norms, ``(rounds, canaries)``, and its δ."""

    sums: Floats
    delta: float


def audit_strategy(
    make: Callable[[], Any], *, num_rounds: int = 1, dropouts: float = 0.5, confidence: float = 0.95
) -> Finding:
    """Return what an adversary shows of ``make()``, beside what it accounts for ``num_rounds`` rounds.

    Parameters
    ----------
    make : callable
        Returns a new strategy each time, ``dp_fedavg(…)`` for one; all its ``population`` takes part.
    num_rounds : int
        Rounds of a run.
    dropouts : float
        Part of the population that fails in every round, in [0, 1); the others are canaries. Noise that
        depends on who answers shows itself only if some do not.
    confidence : float
        With what probability the lower bounds are true.

    Raises
    ------
    ContractError
        If it is no strategy whose release is known.
    ConfigError
        If a number is out of range, or no round was released.
    """
    strategy = make()
    if not isinstance(strategy, PrivateStrategy):
        raise ContractError(
            f"audit: {type(strategy).__name__} does not say what it releases (release, population, "
            "expected_cohort, clip_norm); audit dp_fedavg(…), or a strategy with these."
        )
    check_number("audit", "dropouts", dropouts, minimum=0.0, maximum=0.999)
    relation = strategy.release.relation
    num_canaries = strategy.population - math.floor(dropouts * strategy.population)
    coins = NoiseSource().bernoulli(0.5, num_canaries)
    tails = {Adjacency.ADD_REMOVE: math.nan, Adjacency.ZERO_OUT: 0.0, Adjacency.REPLACE: -1.0}
    does = np.where(coins, 1.0, tails[relation.adjacency])
    seen = _play(strategy, does, num_rounds)
    release: Release = strategy.release  # of distributed noise it depends on the model
    first, second = (_play(make(), np.zeros(num_canaries), num_rounds).sums for _ in range(2))
    sums = seen.sums
    if repeats(first, second):
        sums = sums - first[: len(sums)]
    accountant = Accountant(relation)
    accountant.compose(release, len(sums))
    report = accountant.report(seen.delta)
    exact = isinstance(release.sampling, Everyone) and isinstance(release.mechanism, Gaussian)
    return Finding.of(
        _scores(sums, release, linear=strategy.server_optimizer is not None),
        coins,
        relation=relation,
        delta=seen.delta,
        confidence=confidence,
        accounted=report.epsilon,
        account=str(report),
        gaussian=exact,
    )


def _play(strategy: PrivateStrategy, does: Floats, num_rounds: int) -> _Seen:
    """Run ``num_rounds`` rounds; canary i sends ``does[i]`` times its direction, NaN: nothing."""
    models: list[Floats] = []
    events: list[dict[str, Any]] = []

    def serve(message: Message, context: Context) -> Message:
        client = int(context.node_config[wire.PARTITION_ID])
        if client >= len(does) or np.isnan(does[client]):
            raise ValueError("takes no part")
        model = to_named(next(iter(message.content.array_records.values())))[_KEY].copy()
        model[client] += does[client] * _FAR * strategy.clip_norm
        metrics = MetricRecord({wire.NUM_EXAMPLES: _MAX_CLAIM})
        return Message(
            RecordDict({wire.ARRAYS: from_named({_KEY: model}), wire.METRICS: metrics}), reply_to=message
        )

    layered = ClientApp(mods=[layers_mod])
    layered.train()(serve)

    def answer(message: Message, context: Context) -> Message:
        config = message.content.config_records.get(wire.CONFIG, ConfigRecord())
        return layered(message, context) if wire.LAYERS in config else serve(message, context)

    def look(_: int, arrays: ArrayRecord) -> None:
        models.append(to_named(arrays)[_KEY])

    def note(event: str, /, **fields: Any) -> None:
        if event == "privacy":
            events.append(fields)

    options = RunOptions(
        num_rounds=num_rounds, seed=0, client_evaluation=False, evaluate_fn=look, emit=note, timeout_s=3600.0
    )
    with quiet(), AuditGrid(answer, strategy.population, run_config=RunConfig.defaults()) as grid:
        strategy.run(grid, from_named({_KEY: np.zeros(len(does))}), options)
    if not events:
        raise ConfigError("audit: the strategy released no round; raise its budget, or max_epsilon.")
    steps = np.diff(np.stack(models), axis=0)[: len(events)]
    sizes = np.array([[strategy.expected_cohort * strategy.mean_weight / one["clip_norm"]] for one in events])
    return _Seen(steps * sizes, float(events[0]["delta"]))


def _scores(sums: Floats, release: Release, *, linear: bool) -> Floats:
    """Return one score per canary: log P(sums | heads) / P(sums | tails) where that is known.

    A server optimizer changes scale and shape of what is seen; then it is the total, from the middle of all.
    """
    sums = sums[np.any(sums != 0.0, axis=1)]  # rounds in which an adaptive clip norm takes no step
    if linear or not isinstance(release.mechanism, Gaussian):
        return centered(sums.sum(axis=0))
    rate = 1.0
    if isinstance(release.sampling, Poisson):
        rate = release.sampling.rate
    elif isinstance(release.sampling, FixedSize):
        rate = release.sampling.size / release.sampling.population
    variance = release.mechanism.noise_multiplier**2

    def log_likelihood(sent: float) -> Floats:
        """Return log P(x), without the part that is the same for all, if ``sent`` is sent at ``rate``."""
        exponent = (sent * sums - 0.5 * sent * sent) / variance
        return np.logaddexp(math.log1p(-rate) if rate < 1.0 else -math.inf, math.log(rate) + exponent)

    tails = -1.0 if release.relation.adjacency is Adjacency.REPLACE else 0.0
    ratio: Floats = (log_likelihood(1.0) - log_likelihood(tails)).sum(axis=0)
    return ratio


def repeats(first: Floats, second: Floats) -> bool:
    """Return whether two runs without canaries have noise in common, which an adversary can subtract."""
    return bool(np.std(first - second) < _REPEATS * np.std(first))


def centered(values: Floats) -> Floats:
    """Return values less the middle between their 10 % and 90 % quantiles: two groups on both sides of 0."""
    return np.asarray(values - np.quantile(values, [0.1, 0.9]).mean(), dtype=np.float64)
