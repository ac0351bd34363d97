"""The strategy that all ours are: one aggregator, one optional server optimizer, replies judged one by one.

A subclass only chooses the aggregator. The object speaks Flower's ``Strategy`` interface, so it runs in
anyone's ServerApp and with stock Flower clients, which reply with full parameters.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Unpack, cast

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from numpy.typing import NDArray

from fl_plugins import wire
from fl_plugins.aggregation.core import Aggregate, Aggregator, Foldable, call_rule
from fl_plugins.contracts import Access, Weighting
from fl_plugins.records import Layout, UpdateRows, combine_integers, from_named, to_named
from fl_plugins.run_options import EvaluateFn, RunOptions
from fl_plugins.training import NamedArrays

from .cohort import Cohort, Tally, next_attempt, under_way
from .folding import Fold, Folds, nodes_may_sum
from .options import Settings, StrategyOptions
from .replies import ClientReply, Metrics, claimed_examples, mean_metrics, median_metrics, to_metric_record
from .roster import Roster
from .rounds import run_rounds
from .rules import Role, RuleState, check_fallback, check_model, describe_rule, for_cohort, rule_or_fallback
from .server_optimizer import ServerOptimizer, floats_of, step
from .session import Phase, Session

logger = logging.getLogger("flwr.fl_plugins")


class FederatedStrategy(Strategy):
    """Sample, validate, aggregate, step.

    Parameters
    ----------
    aggregator : Aggregator
        Combines the accepted updates (reply − global), see :mod:`fl_plugins.aggregation`.
    weighting : Weighting
        Whether updates count equally or by the number of examples that each client claims.
    **options
        See :class:`strategies.options.Settings`; ``server_optimizer``, an optax transformation that is
        applied to the aggregated update; and ``fallback``, a rule that stands in when fewer replies than
        ``aggregator`` needs are usable.

    Guarantees
    ----------
    - A reply is used only if it has exactly the model's arrays, all values are finite, and its number of
      examples is plausible; any other is *quarantined*: logged with its node and reason, and left out.
    - The aggregate is computed only if at least ``quorum`` of the cohort was accepted and the rule's own
      precondition holds for the number accepted: a quarantined reply is not among its n, and f stays what it
      was declared, although a quarantined client may be one of the f. If the precondition does not hold,
      the round is tried again, or ends the run, or goes to ``fallback``, as was asked for; each says so.
    - Updates under a linear rule are summed as they come, in memory that does not grow with the cohort, and
      cohort nodes send sums; the result has the same bits as if all updates had been there together.
    - What a rule remembers from round to round is part of :meth:`state`.
    - Arrays are paired by name. The result does not depend on the order of arrival.
    - Arrays that are not floating point (counters, masks) take the element-wise lower median of the accepted
      replies: their dtype is kept and the value is always one that a client sent.
    """

    def __init__(
        self,
        aggregator: Aggregator,
        *,
        weighting: Weighting = Weighting.UNIFORM,
        **options: Unpack[StrategyOptions],
    ) -> None:
        self._options = cast(StrategyOptions, dict(options))
        transformation = options.pop("server_optimizer", None)
        self.fallback: Aggregator | None = options.pop("fallback", None)
        self.aggregator = aggregator
        self.weighting = weighting
        self.settings = Settings(**cast(dict[str, Any], options))
        self.server_optimizer = None if transformation is None else ServerOptimizer(transformation)
        check_fallback(self.fallback, on_shortfall=self.settings.on_shortfall)
        self.tally = Tally()
        self._rule_state = RuleState()
        self._session = Session()
        self._cohort: Cohort | None = None

    # -- Flower's interface ----------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample a cohort and return its training messages.

        Raises
        ------
        PreconditionError
            If the rule cannot work on a cohort of this size, before any message is sent.
        StructureError
            If the model has nothing to aggregate.
        QuorumError
            If not enough nodes connect in time.
        """
        return self._configure("train", server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Judge the replies as they come, aggregate the accepted ones, return parameters and metrics.

        Raises
        ------
        QuorumError
            If fewer than ``quorum`` of the cohort were accepted.
        PreconditionError
            If the rule needs more updates than were accepted.
        DivergenceError
            If the clients reply with parameters that are not finite, or the new parameters are not.
        """
        cohort = self._current("train", server_round)
        fold = None
        if self._folds(cohort.rule, cohort.layout):
            fold = Fold(
                cohort.layout,
                cohort.base,
                weighted=self._weighted,
                size=len(cohort.clients),
                settings=self.settings,
            )
        accepted, self.tally = self._judge(cohort, replies, fold)
        if not cohort.clients:
            return None, None
        cohort.require_quorum(self.tally, self.settings.quorum)
        role, rule = self._rule_for(cohort, len(accepted))
        aggregate = self._aggregate(cohort, accepted, role, rule, fold)
        parameters = self._step(cohort, aggregate, accepted)
        self._rule_state.keep(role, aggregate.state)
        contribution = zip((reply.client for reply in accepted), aggregate.contribution.tolist(), strict=True)
        self._tell_aggregated(server_round, dict(contribution), rule=rule.name, fallback=role == "fallback")
        return parameters, to_metric_record(self._combine_metrics(accepted))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes for evaluation and return their messages."""
        return self._configure("evaluate", server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Combine the metrics of the usable replies; ``None`` if there are none."""
        accepted, _ = self._judge(self._current("evaluate", server_round), replies)
        return to_metric_record(self._combine_metrics(accepted)) if accepted else None

    def summary(self) -> None:
        """Log what this strategy is."""
        logger.info("\t└──> %s", self.describe())

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Run ``num_rounds`` rounds, with the signature of Flower's own ``Strategy.start``.

        :meth:`run` takes more: seed, checkpoints, resume, early stop, events.
        """
        options = RunOptions(
            num_rounds=num_rounds,
            timeout_s=timeout,
            train_config=train_config or ConfigRecord(),
            evaluate_config=evaluate_config or ConfigRecord(),
            evaluate_fn=evaluate_fn,
        )
        return self.run(grid, initial_arrays, options)

    # -- What the round loop uses ----------------------------------------------------------------------

    def run(self, grid: Grid, initial_arrays: ArrayRecord, options: RunOptions) -> Result:
        """Run as ``options`` say; see :func:`strategies.rounds.run_rounds`."""
        return run_rounds(self, grid, initial_arrays, options)

    def begin(self, options: RunOptions, *, seed: int) -> None:
        """Start a run: fix the seed, forget the nodes and the optimizer state of any earlier run."""
        roster = Roster(roll_call=options.roll_call, virtual_clients=options.virtual_clients)
        self._session = Session(seed=seed, timeout_s=options.timeout_s, roster=roster, emit=options.emit)
        self._cohort = None
        self.restore({}, {})

    def dealt(self) -> list[int]:
        """Return among how many clients the nodes say that their data were dealt (one number)."""
        return self._session.roster.dealt()

    def expect_dealt(self, partitions: Iterable[int]) -> None:
        """Leave nodes out from now on whose data were dealt otherwise: the run that is resumed had these."""
        self._session.roster.partitions = frozenset(partitions)

    def stop_before(self, number: int) -> str | None:  # noqa: ARG002  for strategies that have a budget
        """Return why round ``number`` may not be run, which ends the run in good order, or ``None``."""
        return None

    def state(self) -> NamedArrays:
        """Return what must survive a restart, beside the parameters: the optimizer's and the rule's state."""
        optimizer = {} if self.server_optimizer is None else self.server_optimizer.state()
        return {**optimizer, **self._rule_state.arrays}

    def restore(self, parameters: NamedArrays, state: NamedArrays) -> None:
        """Take up what :meth:`state` returned.

        Raises
        ------
        StructureError
            If it belongs to another model, optimizer or rule.
        """
        rules, rest = RuleState.split(state)
        if parameters:
            rules.check(Layout.of(parameters), {"aggregator": self.aggregator, "fallback": self.fallback})
        if self.server_optimizer is not None:
            self.server_optimizer.restore(floats_of(parameters), rest)
        self._rule_state = rules

    def describe(self) -> str:
        """Return one line that identifies the rule and every setting."""
        fallback = [] if self.fallback is None else [f"fallback={describe_rule(self.fallback)}"]
        optimizer = self.server_optimizer
        stepped = [] if optimizer is None else [f"server optimizer {optimizer.fingerprint()}"]
        parts = [
            describe_rule(self.aggregator),
            self.weighting,
            *self.settings.changed(),
            *fallback,
            *stepped,
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    def aggregate_rows(
        self,
        rule: Aggregator,
        rows: UpdateRows,
        weights: NDArray[np.float64] | None,
        *,
        base: NamedArrays,  # noqa: ARG002  for rules that train at the server
        state: NamedArrays,
    ) -> Aggregate:
        """Combine the accepted updates; ``base`` are the parameters that the clients started from."""
        return call_rule(rule, rows, weights, state=state)

    # -- What a layer around a strategy changes --------------------------------------------------------

    def options(self) -> StrategyOptions:
        """Return the options that this strategy was made with; a layer around it takes them over."""
        return cast(StrategyOptions, dict(self._options))

    def announce(self, phase: Phase, number: int) -> dict[str, list[str]]:  # noqa: ARG002  for layers
        """Return the stack that messages announce: lists of specs under ``wire.LAYERS`` and ``PROMISES``."""
        return {}

    def draw(self, grid: Grid, phase: Phase, number: int, attempt: int) -> tuple[dict[str, int], int]:
        """Return the cohort of one exchange (client → its node), and how many clients were connected."""
        connected, size = self._session.gather(grid, self.settings, phase)
        cohort = self._session.sample(connected, size, phase=phase, number=number, attempt=attempt)
        return cohort, len(connected)

    def announced_size(self, cohort: int) -> int:
        """Return how many clients the messages say are asked; a layer may have to hide the number drawn."""
        return cohort

    # -- Inside ----------------------------------------------------------------------------------------

    def _configure(
        self, phase: Phase, number: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Sample a cohort, remember it, and return its messages (none if the phase is switched off)."""
        session, settings = self._session, self.settings
        attempt = next_attempt(self._cohort, phase, number)
        base = to_named(arrays)
        rule = self.aggregator
        clients, available = self.draw(grid, phase, number, attempt)
        if phase == "train" and clients:
            rule = for_cohort(self.aggregator, len(clients))
            rule.check(len(clients))
        layout = Layout.of(base)
        if phase == "train" and clients:
            check_model(layout, base)
        form = self._form(rule, layout) if phase == "train" else None
        hosts = frozenset(filter(session.roster.is_host, clients.values()))
        cohort = Cohort(
            phase=phase,
            number=number,
            attempt=attempt,
            rule=rule,
            base=base,
            layout=layout,
            clients=clients,
            hosts=hosts,
            form=form,
        )
        self._cohort = cohort.ask(
            arrays,
            config,
            weighting=self.weighting,
            stack=self.announce(phase, number),
            announced_size=self.announced_size(len(clients)),
            settings=settings,
        )
        self._cohort.tell_asked(session.emit, available=available)
        return list(self._cohort.messages)

    def _current(self, phase: Phase, number: int) -> Cohort:
        """Return the cohort whose replies are being aggregated."""
        return under_way(self._cohort, phase, number, owner=type(self).__name__)

    def _judge(
        self, cohort: Cohort, replies: Iterable[Message], fold: Folds | None = None
    ) -> tuple[list[ClientReply], Tally]:
        """Return the usable replies and the count of all."""
        return cohort.judge(
            replies, self.settings, weighted=self._weighted, emit=self._session.emit, fold=fold
        )

    @property
    def _weighted(self) -> bool:
        """Whether updates count by the number of examples that clients claim."""
        return self.weighting is Weighting.EXAMPLES

    def _rule_for(self, cohort: Cohort, accepted: int) -> tuple[Role, Aggregator]:
        """Return the rule, or the fallback if the rule needs more updates than were accepted."""
        role, rule, reason = rule_or_fallback(
            cohort.rule, self.fallback, asked=len(cohort.clients), accepted=accepted
        )
        if role == "fallback":
            logger.warning("round %d: %s stands in: %s", cohort.number, rule.name, reason)
            self._session.emit(
                "fallback_used", round=cohort.number, accepted=accepted, rule=rule.name, reason=reason
            )
        return role, rule

    def _weights(self, accepted: Sequence[ClientReply]) -> NDArray[np.float64] | None:
        """Return the claimed numbers of examples, or ``None`` for equal weights."""
        return claimed_examples(accepted) if self._weighted else None

    def _aggregate(
        self,
        cohort: Cohort,
        accepted: Sequence[ClientReply],
        role: Role,
        rule: Aggregator,
        fold: Fold | None,
    ) -> Aggregate:
        """Return the combined update, from the sum if the replies were folded."""
        weights = self._weights(accepted)
        if fold is not None and isinstance(rule, Foldable):
            total, scale = fold.finish()
            counted = np.ones(len(accepted)) if weights is None else weights
            return rule.from_sum(total, counted * scale, dtype=cohort.layout.compute_dtype)
        if role == "fallback" and rule.contract.weighting is Weighting.UNIFORM:
            weights = None
        rows = UpdateRows(cohort.layout, cohort.base, [reply.arrays for reply in accepted])
        state = self._rule_state.of(role)
        return self.aggregate_rows(rule, rows, weights, base=cohort.base, state=state)

    def _step(self, cohort: Cohort, aggregate: Aggregate, accepted: Sequence[ClientReply]) -> ArrayRecord:
        """Return the new parameters: the optimizer's step, and the integers of the accepted replies."""
        parameters = step(cohort.layout, cohort.base, aggregate, optimizer=self.server_optimizer)
        for key in cohort.layout.other_keys:
            parameters[key] = combine_integers([reply.arrays[key] for reply in accepted])
        return from_named({key: parameters[key] for key in cohort.base})

    def _tell_aggregated(
        self, number: int, contribution: Mapping[str, float], *, rule: str, fallback: bool = False
    ) -> None:
        """Emit that round ``number`` was aggregated: from what replies, with what weight by client."""
        self._session.emit(
            "aggregated",
            round=number,
            **asdict(self.tally),
            contribution=contribution,
            rule=rule,
            fallback=fallback,
        )

    def _folds(self, rule: Aggregator, layout: Layout) -> bool:
        """Whether replies are summed as they come: the rule, and what may stand in, need no more."""
        sees_rows = type(self).aggregate_rows is not FederatedStrategy.aggregate_rows
        return isinstance(rule, Foldable) and not sees_rows and self.fallback is None and layout.size > 0

    def _form(self, rule: Aggregator, layout: Layout) -> str:
        """Return what cohort nodes are to send."""
        sums = self._folds(rule, layout) and nodes_may_sum(layout, self.settings, weighted=self._weighted)
        return wire.SUM if sums else wire.EACH

    def _combine_metrics(self, accepted: Sequence[ClientReply]) -> Metrics:
        """Average metrics under a linear rule; take medians where clients are not trusted."""
        if self.aggregator.contract.access is Access.EVERY_UPDATE:
            return median_metrics(accepted)
        return mean_metrics(accepted, self._weights(accepted))
