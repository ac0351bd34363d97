"""Differentially private federated averaging (McMahan et al. 2018) around any strategy with a plain mean.

One round: every client's update is clipped to norm C, the clipped updates are summed, Gaussian noise of
standard deviation z·C is added to the *sum*, and that is divided by a fixed number, the expected cohort. Only
then comes the server optimizer. A client that drops out counts as zero; nothing that depends on who answers
changes the noise, the denominator, or whether there is a release.
"""

import logging
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl_plugins import wire
from fl_plugins.aggregation.core import Aggregate, Aggregator
from fl_plugins.checks import check_int, check_number
from fl_plugins.clipped_updates import check_untrained_arrays, trained_keys
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.errors import ConfigError, PreconditionError, QuorumError
from fl_plugins.privacy import (
    Everyone,
    Gaussian,
    NoiseSource,
    Poisson,
    Release,
    Sampling,
)
from fl_plugins.records import Layout, from_named, to_named
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.run_options import RunOptions
from fl_plugins.seeds import derive_seed
from fl_plugins.spec import Spec
from fl_plugins.training import NamedArrays

from .base import FederatedStrategy
from .clipped_sum import ClippedSum
from .cohort import Cohort
from .dp_options import OWNER, AdaptiveClip, Clip, check_weights, read_clip, read_relation, read_sampling
from .noisy_mean import ClipState, NoisyMean
from .privacy_budget import PrivacyBudget, planned_noise_multiplier
from .replies import Metrics, to_metric_record
from .roster import name_order
from .server_optimizer import step
from .session import Phase
from .wrapping import check_plain_mean

logger = logging.getLogger("flwr.fl_plugins")

_STATE = "dp_fedavg/state"
"""Where a checkpoint keeps the next round's clip state, and how many releases the ledger had."""


@register(
    Kind.STRATEGY,
    "dp_fedavg",
    paper="McMahan et al. 2018, Learning Differentially Private Recurrent Language Models",
    contract=Contract(access=Access.SUM, weighting=Weighting.UNIFORM),
)
class DpFedAvg(FederatedStrategy):
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
        ``everyone()``, ``poisson(rate=0.05)`` or ``fixed_size(size=50)``; the accounting follows from it.
    clip_norm : float, optional
        The largest norm of an update that is left as it is; or give ``clip``.
    clip : str, optional
        ``adaptive(initial=0.1, quantile=0.5, learning_rate=0.2)``: the clip norm follows a quantile of the
        norms.
    per_layer : bool
        Clip each of the L arrays to clip_norm/√L instead of the whole; the sum moves by at most one clip norm
        too.
    noise_multiplier : float, optional
        z: standard deviation of the noise on the sum, in clip norms; or give ``target_epsilon``.
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
      accounted: parameters, next clip norm, and no metric of the clients.
    - A round is charged before its messages leave. There is no second attempt: a round is what it is.

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
        options = inner.options()
        options["on_shortfall"] = "raise"  # a second attempt at a round would be another release
        super().__init__(inner.aggregator, weighting=inner.weighting, **options)
        check_int(OWNER, "population", population, minimum=1)
        check_number(OWNER, "delta", delta, minimum=0.0, maximum=1.0 / population, open_below=True)
        check_int(OWNER, "min_replies", min_replies, minimum=0)
        check_weights(inner.weighting, max_examples, mean_weight)
        check_untrained_arrays(OWNER, untrained_arrays)
        if insecure_seed is not None:
            check_int(OWNER, "insecure_seed", insecure_seed, minimum=0)
        self.population, self.min_replies, self.insecure_seed = population, min_replies, insecure_seed
        self.per_layer = per_layer
        self.max_examples, self.mean_weight = max_examples, mean_weight
        self.unprotected_metrics, self.untrained_arrays = unprotected_metrics, untrained_arrays
        self.clip = read_clip(clip, clip_norm)
        if per_layer and isinstance(self.clip, AdaptiveClip):
            raise ConfigError(
                f"{OWNER}: per_layer=True, but an adaptive clip norm follows the norm of whole updates; "
                "give clip_norm."
            )
        relation, chosen = read_relation(unit, adjacency), read_sampling(sampling, population)
        secure = insecure_seed is None
        multiplier = planned_noise_multiplier(
            OWNER,
            relation,
            chosen,
            delta,
            noise_multiplier=noise_multiplier,
            target_epsilon=target_epsilon,
            num_rounds=num_rounds,
        )
        self.noise_multiplier = multiplier
        self.release = Release(
            mechanism=Gaussian(noise_multiplier=multiplier), sampling=chosen, relation=relation, secure=secure
        )
        self.mean = NoisyMean.planned(self.clip, multiplier, self.expected_cohort, mean_weight)
        self.budget = PrivacyBudget(
            OWNER,
            self.release,
            population=population,
            delta=delta,
            max_epsilon=target_epsilon if max_epsilon is None else max_epsilon,
        )
        self._wait_for = population
        if isinstance(chosen, Poisson) or ("min_available_nodes" in options and isinstance(chosen, Everyone)):
            self._wait_for = self.settings.min_available_nodes
        self._clip_state = ClipState(norm=float(self.clip.initial))

    @property
    def expected_cohort(self) -> float:
        """How many clients are asked on average: public, and what the sum is divided by."""
        sampling = self.release.sampling
        if isinstance(sampling, Poisson):
            return sampling.rate * self.population
        return float(self.population if isinstance(sampling, Everyone) else sampling.size)

    @property
    def clip_norm(self) -> float:
        """The clip norm of the next round."""
        return self._clip_state.norm

    def noise_source(self, purpose: str, number: int, attempt: int = 1) -> NoiseSource:
        """Return the randomness of one purpose in one round: the operating system's, unless a seed is set."""
        if self.insecure_seed is None:
            return NoiseSource()
        return NoiseSource(insecure_seed=derive_seed(self.insecure_seed, OWNER, purpose, number, attempt))

    def make_public(
        self, layout: Layout, base: NamedArrays, total: ClippedSum, source: NoiseSource
    ) -> NamedArrays:
        """Return the new parameters, and set the next clip norm.

        This is the release: all that leaves the server in a round follows from what is returned here.
        """
        mean, self._clip_state = self.mean.release(self._clip_state, total, source)
        if mean is None:
            return dict(base)
        flat = [mean[key].ravel() if key in mean else np.zeros(base[key].size) for key in layout.float_keys]
        aggregate = Aggregate(np.concatenate(flat).astype(layout.compute_dtype), np.zeros(0))
        parameters = step(layout, base, aggregate, optimizer=self.server_optimizer)
        return {key: parameters.get(key, base[key]) for key in base}

    # -- Flower's interface ----------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw a cohort, charge the round, and return its messages; none if nobody was drawn.

        Raises
        ------
        ConfigError
            If the model has arrays that are not protected.
        BudgetError
            If the round would exceed the budget.
        PreconditionError
            If more clients are connected than ``population``.
        QuorumError
            If too few clients connect in time.
        """
        self._trained(Layout.of(to_named(arrays)))
        messages = super().configure_train(server_round, arrays, config, grid)
        self.budget.reserve(server_round)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip and sum the replies, add the noise, step; return parameters and what the run has cost so far.

        Raises
        ------
        QuorumError
            If fewer than ``min_replies`` clients sent anything.
        ConfigError
            If the round was released before: that would be another release, which nobody was charged.
        """
        cohort = self._current("train", server_round)
        self.budget.check_reserved(server_round)
        total = ClippedSum(
            cohort.layout,
            cohort.base,
            keys=self._trained(cohort.layout),
            clip_norm=self.clip_norm,
            per_layer=self.per_layer,
            max_examples=self.max_examples,
        )
        accepted, self.tally = self._judge(cohort, replies, total)
        self._check_replies(cohort)
        clip_norm = self.clip_norm
        source = self.noise_source("noise", server_round, cohort.attempt)
        parameters = from_named(self.make_public(cohort.layout, cohort.base, total, source))
        report = self.budget.commit(server_round)
        logger.info("\tround %d: spent %s", server_round, report)
        denominator = self.expected_cohort * self.mean_weight
        names = sorted(total.weights, key=name_order)
        contribution = {name: total.weights[name] / denominator for name in names}
        self._tell_aggregated(server_round, contribution, rule=OWNER)
        self._session.emit(
            "privacy",
            round=server_round,
            epsilon=report.epsilon,
            delta=report.delta,
            **asdict(report.relation),
            method=report.method,
            noise_multiplier=self.noise_multiplier,
            clip_norm=clip_norm,
            secure=report.secure,
        )
        metrics: Metrics = {"privacy-epsilon": report.epsilon, "privacy-delta": report.delta}
        if self.unprotected_metrics and accepted:
            metrics = {**self._combine_metrics(accepted), **metrics}
        return parameters, to_metric_record(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return no messages: clients' own metrics are withheld, unless ``unprotected_metrics`` is set."""
        if not self.unprotected_metrics:
            return []
        return super().configure_evaluate(server_round, arrays, config, grid)

    # -- What the round loop uses ----------------------------------------------------------------------

    def run(self, grid: Grid, initial_arrays: ArrayRecord, options: RunOptions) -> Result:
        """Run as ``options`` say, and let others use the ledger afterwards."""
        try:
            return super().run(grid, initial_arrays, options)
        finally:
            self.budget.close()

    def begin(self, options: RunOptions, *, seed: int) -> None:
        """Start a run: open the ledger, which knows what earlier runs on these clients have spent."""
        super().begin(options, seed=seed)
        self.budget.open(options, configuration=self.describe())
        if options.client_evaluation and not self.unprotected_metrics:
            logger.info("%s: the clients' own metrics are withheld, nothing protects them", OWNER)
        if not self.release.secure:
            logger.warning("%s: insecure_seed is set: the noise can be subtracted, and ε is VOID", OWNER)

    def stop_before(self, number: int) -> str | None:  # noqa: ARG002  all rounds cost the same
        """Return why no other round may be run: it would exceed the budget."""
        return self.budget.stop_reason()

    def state(self) -> NamedArrays:
        """Return what must survive a restart: the inner strategy's, and the clip norm."""
        clip = self._clip_state
        kept = np.array([clip.norm, float(clip.settled), float(self.budget.num_releases)])
        return {**super().state(), _STATE: kept}

    def restore(self, parameters: NamedArrays, state: NamedArrays) -> None:
        """Take up what :meth:`state` returned."""
        rest = dict(state)
        norm, settled, spent = rest.pop(_STATE, np.array([self.clip.initial, 0.0, 0.0])).tolist()
        super().restore(parameters, rest)
        self.budget.check_spent(int(spent))
        self._clip_state = ClipState(norm=norm, settled=bool(settled))

    def describe(self) -> str:
        """Return one line that identifies the guarantee, the rule and every setting."""
        given = {
            "population": self.population,
            "min_replies": self.min_replies,
            "per_layer": self.per_layer,
            "max_examples": self.max_examples,
            "mean_weight": self.mean_weight,
            "untrained_arrays": self.untrained_arrays,
            "unprotected_metrics": self.unprotected_metrics,
            "insecure_seed": self.insecure_seed,
        }
        parts = [
            f"{self.release!r}",
            repr(self.budget),
            repr(self.clip),
            *(f"{k}={v!r}" for k, v in given.items()),
        ]
        return f"{super().describe()[:-1]}, {', '.join(parts)})"

    # -- What a layer around a strategy changes --------------------------------------------------------

    def announce(self, phase: Phase, number: int) -> dict[str, list[str]]:  # noqa: ARG002
        """Return the promise of this strategy; none if its noise can be subtracted."""
        if not self.release.secure:
            return {}
        relation = self.release.relation
        promise: dict[str, object] = {
            "unit": relation.unit.value,
            "adjacency": relation.adjacency.value,
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": self.clip_norm,
            "delta": self.budget.delta,
            "expected_cohort": self.expected_cohort,
            "population": self.population,
            "metrics_withheld": not self.unprotected_metrics,
        }
        if self.budget.max_epsilon is not None:
            promise["epsilon"] = self.budget.max_epsilon
        return {wire.PROMISES: [str(Spec("central_dp", kwargs=tuple(promise.items())))]}

    def announced_size(self, cohort: int) -> int:  # noqa: ARG002  it depends on who is there
        """Return the expected cohort: the number drawn would tell who else takes part."""
        return int(self.expected_cohort)

    def draw(self, grid: Grid, phase: Phase, number: int, attempt: int) -> tuple[dict[str, int], int]:
        """Draw the cohort as it is accounted, from the operating system's randomness."""
        if phase == "evaluate":
            return super().draw(grid, phase, number, attempt)
        session = self._session
        connected = session.roster.wait_for(grid, self._wait_for, timeout_s=session.timeout_s)
        names = sorted(connected, key=name_order)
        if len(names) > self.population:
            raise PreconditionError(
                f"{OWNER}: {len(names)} clients are connected, but the accounting is for population="
                f"{self.population}; declare all that there may be."
            )
        drawn = self.release.sampling.draw(names, self.noise_source("sample", number, attempt))
        return {name: connected[name] for name in drawn}, len(connected)

    # -- Inside ----------------------------------------------------------------------------------------

    def _trained(self, layout: Layout) -> tuple[str, ...]:
        """Return the arrays that are clipped and released."""
        return trained_keys(OWNER, layout, keep_others=self.untrained_arrays == "keep")

    def _form(self, rule: Aggregator, layout: Layout) -> str:  # noqa: ARG002  whatever the rule
        """Ask cohort nodes for every client's parameters: each is clipped here."""
        return wire.EACH

    def _check_replies(self, cohort: Cohort) -> None:
        """End the run if too few clients sent anything, whatever it was."""
        sent = self.tally.accepted + self.tally.quarantined
        if sent < self.min_replies:
            raise QuorumError(
                f"round {cohort.number}: {sent} of {len(cohort.clients)} clients sent anything, but "
                f"min_replies={self.min_replies}; the round counts as spent. Find out why they fail, or "
                "lower min_replies."
            )
        if cohort.clients and not self.tally.accepted:
            logger.warning(
                "round %d: none of %d clients has a usable reply: what is released is noise",
                cohort.number,
                len(cohort.clients),
            )
