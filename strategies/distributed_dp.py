"""Differential privacy without a trusted server: clients add the noise, secure aggregation adds them up.

Kairouz, Liu & Steinke 2021 (discrete Gaussian) and Agarwal, Kairouz & Liu 2021 (Skellam), in the rounds of
:class:`strategies.SecureAggregation`. What is charged is the noise of the fewest clients that a sum may have;
the protocol lets no smaller one be unmasked.
"""

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl_plugins.checks import check_int, check_number
from fl_plugins.clipped_updates import trained_keys
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.distributed_privacy import DistributedSettings
from fl_plugins.errors import ConfigError, ContractError, PreconditionError
from fl_plugins.privacy import Release
from fl_plugins.records import Layout, to_named
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.run_options import RunOptions
from fl_plugins.secagg.parameters import ring_levels
from fl_plugins.secure_round import DISTRIBUTED
from fl_plugins.training import NamedArrays

from .base import FederatedStrategy
from .privacy_budget import PrivacyBudget, read_target, tell_spent
from .replies import to_metric_record
from .roster import one_node_each
from .secure_aggregation import SecureAggregation
from .secure_stack import check_inner
from .session import Phase

logger = logging.getLogger("flwr.fl_plugins")

_LARGEST_MODEL = 1 << 32
"""Entries. Noise that is too little for the ring's grid at this size is too little for every model."""

_SMALLEST_MODEL = 1
"""A target that rounding keeps out of reach at this size is out of reach for every model."""

_STATE = "distributed_dp/state"
"""Where a checkpoint keeps how many releases the ledger had."""


@register(
    Kind.STRATEGY,
    DISTRIBUTED,
    paper="Kairouz, Liu & Steinke 2021, The Distributed Discrete Gaussian Mechanism; Agarwal et al. 2021",
    contract=Contract(access=Access.SUM, weighting=Weighting.UNIFORM),
)
class DistributedDp(SecureAggregation):
    """Protect every client's contribution from everyone, the server included, under a budget.

    ``distributed_dp(fedavg(weighting="uniform"), unit="client", adjacency="zero_out", population=100,
    min_clients=80, clip_norm=0.5, noise_multiplier=1.0, delta=1e-5)``.

    Parameters
    ----------
    inner : FederatedStrategy
        A strategy whose rule needs the sum only and weighs every client the same, with its settings and
        server optimizer.
    unit : str
        Whose data are protected; only ``"client"`` is: all that one client holds.
    adjacency : str
        ``"zero_out"`` or ``"replace"``: how two neighbouring runs differ in one client, who takes part in
        both.
    population : int
        N: how many clients there are at most. It is public and fixed, and more are refused.
    min_clients : int
        Fewest clients in a sum: the noise is sized for them without those who collude.
    delta : float
        The δ that ε is for; less than 1/N.
    clip_norm : float
        The largest L2 norm of an update that is left as it is.
    noise_multiplier : float, optional
        z: standard deviation of the noise on a sum of ``min_clients`` of whom ``corrupt`` tell theirs, in
        clip norms; or give ``target_epsilon``.
    target_epsilon : float, optional
        ε that ``num_rounds`` sums may cost in all: the smallest z that does it is used, and it is the budget.
    num_rounds : int, optional
        Sums that ``target_epsilon`` is for; a repeated attempt at a round is one more.
    max_epsilon : float, optional
        The budget: the run ends in good order before the attempt that would exceed it.
    mechanism : str
        ``"discrete_gaussian"`` or ``"skellam"``.
    num_bits : int
        Bits that an entry takes on the way up: 16 or 32.
    tier, corrupt, dropout, stage_timeout_s, roster
        Of secure aggregation. ``corrupt`` of the largest cohort may collude with the server, in unmasking and
        in telling it their noise.

    Guarantees
    ----------
    - All that the server, and whoever it tells, learns of the updates are sums with the noise that is
      charged. The clients unmask no sum of fewer than ``min_clients``.
    - Every attempt is charged before its messages leave, whether it gives a sum or not.
    - The new parameters are the inner strategy's step with the sum divided by the size of the largest cohort:
      whoever is missing counts as zero.
    - No metric of a client leaves it, and clients do not evaluate.

    Raises
    ------
    ContractError
        If the inner strategy must see every update, weighs them, or does more than choose a rule.
    ConfigError
        If something is missing, or no model makes the noise large enough for the ring.
    """

    layer = DISTRIBUTED
    secure: DistributedSettings

    def __init__(
        self,
        inner: Annotated[FederatedStrategy, PluginKind(Kind.STRATEGY)],
        *,
        unit: Literal["client"],
        adjacency: Literal["zero_out", "replace"],
        population: int,
        min_clients: int,
        delta: float,
        clip_norm: float,
        noise_multiplier: float | None = None,
        target_epsilon: float | None = None,
        num_rounds: int | None = None,
        max_epsilon: float | None = None,
        mechanism: Literal["discrete_gaussian", "skellam"] = "discrete_gaussian",
        num_bits: Literal[16, 32] = 16,
        tier: Literal["honest-but-curious", "malicious"] = "honest-but-curious",
        corrupt: float = 0.05,
        dropout: float = 0.05,
        stage_timeout_s: float = 120.0,
        roster: str | None = None,
    ) -> None:
        check_inner(inner, owner=DISTRIBUTED)
        if inner.weighting is not Weighting.UNIFORM:
            raise ContractError(
                f'{DISTRIBUTED}: the inner strategy has weighting="{inner.weighting}", but a weight moves '
                'the sum by more than the noise covers; give fedavg(weighting="uniform").'
            )
        check_int(DISTRIBUTED, "population", population, minimum=2)
        check_number(DISTRIBUTED, "delta", delta, minimum=0.0, maximum=1.0 / population, open_below=True)
        largest = min(inner.settings.cohort_size("train", population), population)
        check_int(DISTRIBUTED, "min_clients", min_clients, minimum=2)
        if min_clients > largest:
            raise ConfigError(
                f"{DISTRIBUTED}: min_clients={min_clients}, but a cohort has at most {largest} clients of "
                f"population={population}; sample more (fraction_train, num_train_nodes), or lower it."
            )
        check_number(DISTRIBUTED, "clip_norm", clip_norm, minimum=0.0, open_below=True)
        self._target = read_target(
            DISTRIBUTED,
            delta,
            noise_multiplier=noise_multiplier,
            target_epsilon=target_epsilon,
            num_rounds=num_rounds,
        )
        settings = DistributedSettings(
            tier=tier,
            num_bits=num_bits,
            clip=float(clip_norm),
            min_clients=min_clients,
            corrupt=float(corrupt),
            dropout=float(dropout),
            mechanism=mechanism,
            noise_multiplier=1.0 if noise_multiplier is None else float(noise_multiplier),
            clip_norm=float(clip_norm),
            max_cohort=largest,
            unit=unit,
            adjacency=adjacency,
        )
        ring_levels(num_bits, largest)
        super().__init__(
            inner,
            tier=tier,
            num_bits=num_bits,
            clip=clip_norm,
            min_clients=min_clients,
            corrupt=corrupt,
            dropout=dropout,
            stage_timeout_s=stage_timeout_s,
            roster=roster,
        )
        # A cohort that is too small gives no sum, so it is waited for.
        least = max(self.settings.min_available_nodes, min_clients)
        self.settings = replace(self.settings, min_available_nodes=least)
        self.population = population
        self._given, self._planned_for = settings, 0
        size = _LARGEST_MODEL if self._target is None else _SMALLEST_MODEL
        self.secure = self._settings_for(size)
        self.budget = PrivacyBudget(
            DISTRIBUTED,
            self.secure.release(size),
            population=population,
            delta=delta,
            max_epsilon=target_epsilon if max_epsilon is None else max_epsilon,
        )

    @property
    def noise_multiplier(self) -> float:
        """z, for the model that runs."""
        return self.secure.noise_multiplier

    @property
    def release(self) -> Release:
        """What one sum makes public, for the model that runs."""
        return self.budget.release

    @property
    def clip_norm(self) -> float:
        """The largest norm of an update that is left as it is."""
        return self.secure.clip_norm

    @property
    def expected_cohort(self) -> float:
        """What a sum is divided by."""
        return float(self.secure.max_cohort)

    @property
    def mean_weight(self) -> float:
        """What a client counts for."""
        return 1.0

    # -- Flower's interface ----------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the first stage's messages, once this attempt is charged.

        Raises
        ------
        ConfigError
            If the model has arrays that are not protected, or leaves the noise too few grid steps.
        BudgetError
            If the attempt would exceed the budget.
        PreconditionError
            If more clients are connected than ``population``.
        QuorumError
            If not enough nodes connect in time.
        """
        self._plan(arrays)
        messages = super().configure_train(server_round, arrays, config, grid)
        if messages:
            self.budget.reserve(server_round)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Play the protocol to its end; return the new parameters and what the run has cost so far.

        Raises
        ------
        QuorumError
            If too few clients are left, or what they sent does not fit together; the attempt is spent.
        ConfigError
            If the attempt was played before: that would be another release, which nobody was charged.
        """
        if not self._current("train", server_round).clients:
            return None, None
        self.budget.check_reserved(server_round)
        parameters, _ = super().aggregate_train(server_round, replies)
        spent = tell_spent(
            self._session,
            server_round,
            self.budget.commit(server_round),
            noise_multiplier=self.noise_multiplier,
            clip_norm=self.secure.clip_norm,
        )
        return parameters, to_metric_record(spent)

    # -- What the round loop uses ----------------------------------------------------------------------

    def run(self, grid: Grid, initial_arrays: ArrayRecord, options: RunOptions) -> Result:
        """Run as ``options`` say, and let others use the ledger afterwards."""
        self._plan(initial_arrays)
        try:
            return super().run(grid, initial_arrays, options)
        finally:
            self.budget.close()

    def begin(self, options: RunOptions, *, seed: int) -> None:
        """Start a run: open the ledger, which knows what earlier runs on these clients have spent."""
        super().begin(options, seed=seed)
        self.budget.open(options, configuration=self.describe())
        secure = self.secure
        logger.info(
            "distributed dp: noise multiplier %g from any %d of at least %d clients, who add it themselves",
            secure.noise_multiplier,
            secure.num_noise_shares,
            secure.min_clients,
        )

    def stop_before(self, number: int) -> str | None:  # noqa: ARG002  all attempts cost the same
        """Return why no other attempt may be made: it would exceed the budget."""
        return self.budget.stop_reason()

    def state(self) -> NamedArrays:
        """Return what must survive a restart: the inner strategy's, and how many releases there were."""
        return {**super().state(), _STATE: np.array([float(self.budget.num_releases)])}

    def restore(self, parameters: NamedArrays, state: NamedArrays) -> None:
        """Take up what :meth:`state` returned."""
        rest = dict(state)
        spent = rest.pop(_STATE, np.zeros(1))
        super().restore(parameters, rest)
        self.budget.check_spent(int(spent[0]))

    def draw(self, grid: Grid, phase: Phase, number: int, attempt: int) -> tuple[dict[str, int], int]:
        """Return a cohort of the declared population, in which a client is one node.

        Raises
        ------
        PreconditionError
            If more clients are connected than ``population``.
        QuorumError
            If fewer than ``min_clients`` are left.
        """
        clients, available = super().draw(grid, phase, number, attempt)
        if available > self.population:
            raise PreconditionError(
                f"{DISTRIBUTED}: {available} clients are connected, but the ring and the ledger are for "
                f"population={self.population}; declare all that there may be."
            )
        return one_node_each(clients), available

    def describe(self) -> str:
        """Return one line that identifies the guarantee, the inner strategy and every setting."""
        planned = "" if self._target is None else f", planned for {self._target[1]} sums"
        return f"{super().describe()}, population={self.population}, {self.budget!r}{planned}"

    # -- Inside ----------------------------------------------------------------------------------------

    def _plan(self, arrays: ArrayRecord) -> None:
        """Fix the noise and what a sum costs for this model."""
        layout = Layout.of(to_named(arrays))
        trained_keys(DISTRIBUTED, layout, keep_others=False)
        if layout.size != self._planned_for:
            self.secure = self._settings_for(layout.size)
            self.budget.release = self.secure.release(layout.size)
            self._planned_for = layout.size

    def _settings_for(self, num_entries: int) -> DistributedSettings:
        """Return the settings with the noise that a model with so many entries needs."""
        if self._target is None:
            return self._given
        budget, rounds = self._target
        return self._given.planned(budget, rounds=rounds, num_entries=num_entries)
