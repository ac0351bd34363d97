"""What a private strategy does in a round: draw, charge, clip, sum, add noise, step.

Every client's update is clipped to norm C, the clipped updates are summed, Gaussian noise is added to the
*sum*, and that is divided by a fixed number, the expected cohort. Only then comes the server optimizer. A
client that drops out counts as zero; nothing that depends on who answers changes the noise, the denominator,
or whether there is a release.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl_plugins import wire
from fl_plugins.aggregation.core import Aggregate, Aggregator
from fl_plugins.checks import check_int
from fl_plugins.clipped_updates import check_untrained_arrays, trained_keys
from fl_plugins.contracts import Weighting
from fl_plugins.errors import ConfigError, PreconditionError, QuorumError
from fl_plugins.privacy import Everyone, Gaussian, MinSeparation, NoiseSource, Poisson, Release
from fl_plugins.records import Layout, from_named, to_named
from fl_plugins.run_options import RunOptions
from fl_plugins.seeds import derive_seed
from fl_plugins.spec import Spec
from fl_plugins.training import NamedArrays

from .base import FederatedStrategy
from .clipped_sum import ClippedSum
from .cohort import Cohort
from .dp_options import OWNER, check_weights
from .noisy_mean import ClipState, NoisyMean
from .privacy_budget import PrivacyBudget, tell_spent
from .private_rounds import PrivateRounds
from .replies import Metrics, to_metric_record
from .roster import name_order, one_node_each
from .server_optimizer import step
from .session import Phase

logger = logging.getLogger("flwr.fl_plugins")

_STATE = "dp_fedavg/state"
"""Where a checkpoint keeps the next round's clip state, and how many releases the ledger had."""


@dataclass(frozen=True, kw_only=True)
class PrivateOptions:
    """What a private strategy is told beside its mechanism; see :class:`.dp_fedavg.DpFedAvg`."""

    population: int
    min_replies: int
    per_layer: bool
    max_examples: int | None
    mean_weight: float
    untrained_arrays: str
    unprotected_metrics: bool
    insecure_seed: int | None

    def __post_init__(self) -> None:
        check_int(OWNER, "population", self.population, minimum=1)
        check_int(OWNER, "min_replies", self.min_replies, minimum=0)
        check_untrained_arrays(OWNER, self.untrained_arrays)
        if self.insecure_seed is not None:
            check_int(OWNER, "insecure_seed", self.insecure_seed, minimum=0)

    def check(self, weighting: Weighting, mean: NoisyMean, *, examples_key: str) -> None:
        """Check that the options go with the inner strategy's weighting and with what is released.

        Raises
        ------
        ConfigError
            If one has no meaning there.
        """
        check_weights(weighting, self.max_examples, self.mean_weight)
        if self.per_layer and mean.count_noise is not None:
            raise ConfigError(
                f"{OWNER}: per_layer=True, but an adaptive clip norm follows the norm of whole updates; "
                "give clip_norm."
            )
        if self.unprotected_metrics and mean.metrics is not None:
            raise ConfigError(
                f"{OWNER}: unprotected_metrics=True gives out all metrics as they are, those of metrics too; "
                "give one of them."
            )
        if mean.metrics is not None and examples_key in mean.metrics.names:
            raise ConfigError(
                f"{OWNER}: metrics: {examples_key!r} is a client's number of examples, which is read as its "
                "weight and as no metric; let clients report it under another name too."
            )


class PrivateMean(FederatedStrategy):
    """The rounds of central differential privacy around a plain mean.

    Parameters
    ----------
    inner : FederatedStrategy
        A strategy whose rule is the plain mean.
    given : PrivateOptions
        What is not part of the mechanism.
    release : Release
        What a round makes public, or a block of rounds, with independent noise.
    mean : NoisyMean
        From a clipped sum to what is public.
    rounds : PrivateRounds
        Their order.
    budget : PrivacyBudget
        What they may cost.
    """

    def __init__(
        self,
        inner: FederatedStrategy,
        given: PrivateOptions,
        *,
        release: Release,
        mean: NoisyMean,
        rounds: PrivateRounds,
        budget: PrivacyBudget,
    ) -> None:
        options = inner.options()
        options["on_shortfall"] = "raise"  # a second attempt at a round would be another release
        super().__init__(inner.aggregator, weighting=inner.weighting, **options)
        self.given, self.release, self.mean, self.rounds, self.budget = given, release, mean, rounds, budget
        self._wait_for = given.population
        may_be_fewer = isinstance(release.sampling, Everyone | MinSeparation)
        if isinstance(release.sampling, Poisson) or ("min_available_nodes" in options and may_be_fewer):
            self._wait_for = self.settings.min_available_nodes
        self._clip_state = ClipState(norm=float(mean.clip.initial))

    @property
    def population(self) -> int:
        """N: how many clients there are at most."""
        return self.given.population

    @property
    def mean_weight(self) -> float:
        """The public number that a client counts for on average; with ``expected_cohort`` the denominator."""
        return self.given.mean_weight

    @property
    def expected_cohort(self) -> float:
        """How many clients are asked on average: public, and what the sum is divided by."""
        return self.mean.expected_cohort

    @property
    def noise_multiplier(self) -> float:
        """Standard deviation of the independent noise on the sum, in clip norms."""
        mechanism = self.release.mechanism
        assert isinstance(mechanism, Gaussian), "no other is planned"
        return mechanism.noise_multiplier

    @property
    def clip_norm(self) -> float:
        """The clip norm of the next round."""
        return self._clip_state.norm

    def noise_source(self, purpose: str, number: int, attempt: int = 1) -> NoiseSource:
        """Return the randomness of one purpose in one round: the operating system's, unless a seed is set."""
        if self.given.insecure_seed is None:
            return NoiseSource()
        seed = derive_seed(self.given.insecure_seed, OWNER, purpose, number, attempt)
        return NoiseSource(insecure_seed=seed)

    def make_public(
        self, layout: Layout, base: NamedArrays, total: ClippedSum, source: NoiseSource
    ) -> NamedArrays:
        """Return the new parameters, and set the next clip norm.

        This is the release: all that leaves the server in a round follows from what is returned here, and
        from the metrics that are named.
        """
        mean, self._clip_state = self.mean.release(self._clip_state, total, source, self.rounds.noise())
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
        self.rounds.charge(server_round)
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
            per_layer=self.given.per_layer,
            max_examples=self.given.max_examples,
            metrics=self.mean.metrics,
        )
        accepted, self.tally = self._judge(cohort, replies, total)
        self._check_replies(cohort)
        clip_norm = self.clip_norm
        source = self.noise_source("noise", server_round, cohort.attempt)
        parameters = from_named(self.make_public(cohort.layout, cohort.base, total, source))
        metrics: Metrics = {**self.mean.release_metrics(total, source)}
        report = self.budget.commit(server_round)
        self.rounds.close()
        denominator = self.expected_cohort * self.mean_weight
        names = sorted(total.weights, key=name_order)
        contribution = {name: total.weights[name] / denominator for name in names}
        self._tell_aggregated(server_round, contribution, rule=OWNER)
        spent = tell_spent(
            self._session,
            server_round,
            report,
            noise_multiplier=self.rounds.noise_multiplier(server_round),
            clip_norm=clip_norm,
        )
        if self.given.unprotected_metrics and accepted:
            metrics = self._combine_metrics(accepted)
        return parameters, to_metric_record({**metrics, **spent})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return no messages: clients' own metrics are withheld, unless ``unprotected_metrics`` is set."""
        if not self.given.unprotected_metrics:
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
        if options.client_evaluation and not self.given.unprotected_metrics:
            logger.info("%s: the clients do not evaluate: nothing protects their own metrics", OWNER)
        if not self.release.secure:
            logger.warning("%s: insecure_seed is set: the noise can be subtracted, and ε is VOID", OWNER)

    def stop_before(self, number: int) -> str | None:
        """Return why round ``number`` may not be run: it would exceed the budget."""
        return self.rounds.stop_reason(number)

    def state(self) -> NamedArrays:
        """Return what must survive a restart: the inner strategy's, and the clip norm; never noise."""
        clip = self._clip_state
        kept = np.array([clip.norm, float(clip.settled), float(self.budget.num_releases)])
        return {**super().state(), _STATE: kept}

    def restore(self, parameters: NamedArrays, state: NamedArrays) -> None:
        """Take up what :meth:`state` returned; a stream of rounds does not go on."""
        rest = dict(state)
        initial = [self.mean.clip.initial, 0.0, 0.0]
        norm, settled, spent = rest.pop(_STATE, np.array(initial)).tolist()
        super().restore(parameters, rest)
        self.budget.check_spent(int(spent))
        self._clip_state = ClipState(norm=norm, settled=bool(settled))
        self.rounds.forget()

    # -- What a layer around a strategy changes --------------------------------------------------------

    def announce(self, phase: Phase, number: int) -> dict[str, list[str]]:  # noqa: ARG002  both are told
        """Return the promise of this strategy; none if its noise can be subtracted."""
        if not self.release.secure:
            return {}
        relation = self.release.relation
        promise: dict[str, object] = {
            "unit": relation.unit.value,
            "adjacency": relation.adjacency.value,
            "noise_multiplier": self.rounds.noise_multiplier(number),
            "clip_norm": self.clip_norm,
            "delta": self.budget.delta,
            "expected_cohort": self.expected_cohort,
            "population": self.population,
            "metrics_withheld": not self.given.unprotected_metrics and self.mean.metrics is None,
            "unprotected_metrics": self.given.unprotected_metrics,
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
        for old, new in session.roster.take_renamed().items():
            self.rounds.rename(old, new)
        clients = one_node_each(connected)
        names = sorted(clients, key=name_order)
        if len(names) > self.population:
            raise PreconditionError(
                f"{OWNER}: {len(names)} clients are connected, but the accounting is for population="
                f"{self.population}; declare all that there may be."
            )
        drawn = self.rounds.draw(names, number, self.noise_source("sample", number, attempt))
        return {name: clients[name] for name in drawn}, len(clients)

    # -- Inside ----------------------------------------------------------------------------------------

    def _trained(self, layout: Layout) -> tuple[str, ...]:
        """Return the arrays that are clipped and released."""
        return trained_keys(OWNER, layout, keep_others=self.given.untrained_arrays == "keep")

    def _form(self, rule: Aggregator, layout: Layout) -> str:  # noqa: ARG002  whatever the rule
        """Ask cohort nodes for every client's parameters: each is clipped here."""
        return wire.EACH

    def _check_replies(self, cohort: Cohort) -> None:
        """End the run if too few clients sent anything, whatever it was."""
        sent = self.tally.accepted + self.tally.quarantined
        if sent < self.given.min_replies:
            raise QuorumError(
                f"round {cohort.number}: {sent} of {len(cohort.clients)} clients sent anything, but "
                f"min_replies={self.given.min_replies}; the round counts as spent. Find out why they fail, "
                "or lower min_replies."
            )
        if cohort.clients and not self.tally.accepted:
            logger.warning(
                "round %d: none of %d clients has a usable reply: what is released is noise",
                cohort.number,
                len(cohort.clients),
            )
