"""Secure aggregation around a strategy with a linear rule: the server sees the cohort's sum and nothing else.

Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning" (CCS 2017); above 64
clients the sparse graph of Bell et al. (CCS 2020). Clients train first and keep the update, so that whoever
drops out while training costs no masks; then come the stages of the protocol, small messages without a model.
"""

import logging
import math
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from fl_plugins import wire
from fl_plugins.aggregation.core import Foldable
from fl_plugins.aggregation.streaming import WeightedSum
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.errors import ConfigError, ContractError, QuorumError
from fl_plugins.records import Layout, to_named
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.run_options import RunOptions
from fl_plugins.secagg import RoundParameters, ServerSession, Tier
from fl_plugins.secagg.parameters import SID_BYTES
from fl_plugins.secure_identities import read_roster
from fl_plugins.secure_round import EVALUATIONS, LAYER, SecureSettings, model_digest

from .base import FederatedStrategy
from .cohort import Cohort
from .replies import to_metric_record
from .secure_attempt import SecureAttempt
from .secure_exchange import ExchangeOptions, SecureExchange
from .secure_stack import NO_COHORT_NODES, check_inner, public_max_weight
from .session import Phase

logger = logging.getLogger("flwr.fl_plugins")


@register(
    Kind.STRATEGY,
    LAYER,
    paper="Bonawitz et al. 2017, Practical Secure Aggregation; Bell et al. 2020",
    contract=Contract(access=Access.SUM, weighting=Weighting.EXAMPLES),
)
class SecureAggregation(FederatedStrategy):
    """Run a linear strategy such that no client's update is ever seen: ``secure_aggregation(fedavg(), …)``.

    Parameters
    ----------
    inner : FederatedStrategy
        A strategy whose rule needs the sum only, with its weighting, settings and server optimizer.
    tier : str
        ``"honest-but-curious"`` or ``"malicious"``: whom the clients are safe from, see
        :class:`fl_plugins.secure_round.SecureSettings`.
    num_bits : int
        Bits that an entry takes on the way up: 32 or 16.
    clip : float
        Largest magnitude of an entry of an update.
    max_weight : float, optional
        The most examples that a client may count for; needed if the inner strategy weights by examples. A
        client that has more takes no part.
    min_clients : int
        Fewest clients in a sum; ``quorum`` of the cohort, if that is more.
    corrupt, dropout : float
        Part of the cohort that may collude with the server, and that may drop out.
    metrics : tuple of str
        The clients' metrics that are averaged inside the masked vector, for example ``("loss",)``. All others
        are withheld.
    evaluate : tuple of str
        The same for evaluations, ``("loss", "accuracy")``, which are exchanges of their own, without an
        update. With none, clients do not evaluate.
    max_metric : float
        The largest magnitude of both; a value beyond it counts as that.
    stage_timeout_s : float
        Deadline of each stage after training; the run's own, if that is shorter.
    roster : str, optional
        For the malicious tier: file with the nodes' public identities. Clients go by their own; here it
        leaves out early whom they would refuse.

    Guarantees
    ----------
    - No message from a client holds its update, its number of examples or a metric but inside a masked
      vector.
    - The new parameters are the inner strategy's step with the weighted mean of the survivors' updates,
      rounded to the ring: mean 0, standard deviation of an entry at most ``clip·√n / (2L)`` over the mean
      weight's part of ``n·max_weight``, with ``L = 2^(num_bits − 1)/n`` levels.
    - A client that drops out in any stage, answers late or sends nonsense is left out; with fewer than the
      threshold the round is tried again with fresh keys, as ``on_shortfall`` and ``max_attempts`` say.
    - Clients evaluate under the same rules, once a round, or not at all.

    Raises
    ------
    ContractError
        If the inner strategy must see every update, or does more than choose a rule.
    """

    layer: ClassVar[str] = LAYER

    def __init__(
        self,
        inner: Annotated[FederatedStrategy, PluginKind(Kind.STRATEGY)],
        *,
        tier: Literal["honest-but-curious", "malicious"] = "honest-but-curious",
        num_bits: Literal[16, 32] = 32,
        clip: float = 1.0,
        max_weight: float | None = None,
        min_clients: int = 3,
        corrupt: float = 0.05,
        dropout: float = 0.05,
        metrics: tuple[str, ...] = (),
        evaluate: tuple[str, ...] = (),
        max_metric: float = 100.0,
        stage_timeout_s: float = 120.0,
        roster: str | None = None,
    ) -> None:
        check_inner(inner, owner=self.layer)
        super().__init__(inner.aggregator, weighting=inner.weighting, **inner.options())
        self.inner_name = inner.describe()
        self.secure = SecureSettings(
            tier=tier,
            num_bits=num_bits,
            clip=float(clip),
            max_weight=public_max_weight(inner.weighting, max_weight, owner=self.layer),
            min_clients=min_clients,
            corrupt=float(corrupt),
            dropout=float(dropout),
            weighting=inner.weighting.value,
            metrics=tuple(metrics),
            evaluate=tuple(evaluate),
            max_metric=float(max_metric),
        )
        if self.settings.weighted_by_key != wire.NUM_EXAMPLES and inner.weighting is Weighting.EXAMPLES:
            raise ContractError(
                f"{self.layer}: weighted_by_key={self.settings.weighted_by_key!r}, but clients weight by "
                f"{wire.NUM_EXAMPLES!r}; leave it out."
            )
        if not stage_timeout_s > 0:
            raise ConfigError(f"{self.layer}: stage_timeout_s={stage_timeout_s}, but it must be > 0.")
        if roster is not None and tier != Tier.MALICIOUS.value:
            raise ConfigError(f"{self.layer}: a roster is given, but it is for tier='malicious'; set it.")
        self.stage_timeout_s = float(stage_timeout_s)
        self._roster = None if roster is None else frozenset(read_roster(Path(roster)).values())
        self._attempt: SecureAttempt | None = None
        self._left_out: tuple[int, frozenset[int]] = (0, frozenset())

    # -- Flower's interface ----------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the first stage: the model, with the parameters of this attempt.

        Raises
        ------
        ContractError
            If the model has integers, or nodes host virtual clients.
        EncodingError
            If the cohort is too large for the ring.
        QuorumError
            If not enough nodes connect in time.
        """
        base = to_named(arrays)
        layout = Layout.of(base)
        if layout.other_keys:
            raise ContractError(
                f"{self.layer}: array {layout.other_keys[0]!r} is of integers, which have no mean; keep such "
                "state out of the model's arrays, or make it float32."
            )
        return self._open(list(super().configure_train(server_round, arrays, config, grid)), grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Play the protocol to its end; return the new parameters and the mean of the metrics asked for.

        Raises
        ------
        QuorumError
            If too few clients are left, or what they sent does not fit together.
        DivergenceError
            If the new parameters are not finite.
        """
        cohort = self._current("train", server_round)
        if not cohort.clients:
            return None, None
        attempt = self._attempt
        assert attempt is not None
        try:
            decoded = attempt.finish(replies)
        except QuorumError:
            self._leave_out(server_round, attempt.conversation.proven_suspects())
            raise
        finally:
            self.tally = attempt.conversation.tally
        rule = cohort.rule
        rule.check(decoded.num_clients)
        assert isinstance(rule, Foldable)
        # One synthetic reply of weight 1: the mean is all that the rule would make of the survivors.
        mean = WeightedSum(decoded.update, np.zeros_like(decoded.update))
        aggregate = rule.from_sum(mean, np.ones(1), dtype=cohort.layout.compute_dtype)
        parameters = self._step(cohort, aggregate, [])
        self._tell_aggregated(server_round, {}, rule=rule.name)
        return parameters, to_metric_record(decoded.metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the first stage of an evaluation; ask nobody if no metric is to be averaged.

        Raises
        ------
        QuorumError
            If not enough nodes connect in time, or fewer than ``min_clients`` are left.
        """
        if not self.secure.evaluate:
            return []
        return self._open(list(super().configure_evaluate(server_round, arrays, config, grid)), grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Play the protocol to its end; return the mean of the metrics asked for, if there is a sum."""
        if not self.secure.evaluate or not self._current("evaluate", server_round).clients:
            return None
        attempt = self._attempt
        assert attempt is not None
        try:
            return to_metric_record(attempt.finish(replies).metrics)
        except QuorumError as error:
            logger.warning("round %d is not evaluated by clients: %s", server_round, error)
            return None

    # -- What the round loop uses ----------------------------------------------------------------------

    def begin(self, options: RunOptions, *, seed: int) -> None:
        """Start a run.

        Raises
        ------
        ContractError
            If nodes are to host virtual clients.
        """
        if options.virtual_clients:
            raise ContractError(
                f"{self.layer}: virtual-clients={options.virtual_clients}, but {NO_COHORT_NODES}"
            )
        super().begin(options, seed=seed)
        self._left_out = (0, frozenset())
        secure = self.secure
        logger.info("%s: tier %s, %s", self.layer, secure.tier, self.trusts())
        logger.info(
            "%s: of the clients' metrics %s, of their evaluations %s",
            self.layer,
            _given_out(secure.metrics),
            _given_out(secure.evaluate),
        )

    def trusts(self) -> str:
        """Return whom the clients are safe from, and on what that rests."""
        return _MEANING[Tier(self.secure.tier)]

    def announce(self, phase: Phase, number: int) -> dict[str, list[str]]:  # noqa: ARG002
        """Return the layer that clients must do."""
        return {wire.LAYERS: [self.secure.spec()]}

    def draw(self, grid: Grid, phase: Phase, number: int, attempt: int) -> tuple[dict[str, int], int]:
        """Return a cohort without the nodes that broke the protocol in an earlier attempt at this round.

        Raises
        ------
        QuorumError
            If fewer than ``min_clients`` are left.
        """
        clients, available = super().draw(grid, phase, number, attempt)
        if clients:
            left_out = self._left_out[1] if self._left_out[0] == number else frozenset()
            clients = {client: node for client, node in clients.items() if node not in left_out}
            if len(clients) < self.secure.min_clients:
                raise QuorumError(
                    f"round {number}: a cohort of {len(clients)} clients, but "
                    f"min_clients={self.secure.min_clients} ({len(left_out)} left out); sample more "
                    f"(fraction_{phase}, min_{phase}_nodes), or lower it."
                )
        return clients, available

    def describe(self) -> str:
        """Return one line that identifies the inner strategy and every setting of the layer."""
        return f"{self.secure.spec()} around {self.inner_name}"

    # -- Inside ----------------------------------------------------------------------------------------

    def _open(self, messages: list[Message], grid: Grid) -> list[Message]:
        """Begin an attempt with the cohort that was just drawn; return its first messages."""
        cohort = self._cohort
        if not messages or cohort is None:
            return []
        if cohort.hosts:
            raise ContractError(f"{self.layer}: {NO_COHORT_NODES}")
        contents = self.secure.contents(cohort.phase)
        length = contents.num_words(len(cohort.clients), cohort.layout)
        digest = contents.layout_digest(cohort.layout)
        parameters = self._parameters(cohort, messages[0].metadata.run_id, length=length, layout=digest)
        announced = {
            wire.SERVER_ROUND: cohort.number,
            wire.SCHEMA: wire.SCHEMA_VERSION,
            **self.announce(cohort.phase, cohort.number),
        }
        options: ExchangeOptions = {
            "layer": self.layer,
            "cohort": cohort,
            "announced": announced,
            "config_key": self.settings.configrecord_key,
            "timeout_s": min(self.stage_timeout_s, self._session.timeout_s),
            "emit": self._session.emit,
        }
        conversation, requests = self._begin_exchange(parameters, options, grid)
        self._attempt = SecureAttempt(
            conversation=conversation,
            grid=grid,
            encoding=contents.encoding(parameters, cohort.layout),
            settings=self.secure,
            emit=self._session.emit,
        )
        sent = [message for message in messages if message.metadata.dst_node_id in requests]
        for message in sent:
            body = requests[message.metadata.dst_node_id]
            message.content[wire.SECAGG] = ConfigRecord({wire.SECAGG_BODY: body})
        return sent

    def _begin_exchange(
        self,
        parameters: RoundParameters,
        options: ExchangeOptions,
        grid: Grid,  # noqa: ARG002
    ) -> tuple[SecureExchange, Mapping[int, bytes]]:
        """Return this attempt's conversation, and what goes to each client beside the model."""
        session = ServerSession(parameters, options["cohort"].clients.values(), roster=self._roster)
        return SecureExchange(session, **options), session.requests()

    def _parameters(self, cohort: Cohort, run_id: int, *, length: int, layout: bytes) -> RoundParameters:
        """Return the parameters of this attempt, with a fresh session id."""
        secure, size = self.secure, len(cohort.clients)
        quorum = math.ceil(round(self.settings.quorum * size, 9))
        return RoundParameters(
            tier=Tier(secure.tier),
            run_id=run_id,
            round=cohort.number,
            attempt=cohort.attempt + (EVALUATIONS if cohort.phase == "evaluate" else 0),
            sid=secrets.token_bytes(SID_BYTES),
            cohort=size,
            min_clients=max(secure.min_clients, quorum),
            corrupt=secure.corrupt,
            dropout=secure.dropout,
            num_bits=secure.num_bits,
            clip=secure.clip,
            max_weight=secure.max_weight,
            length=length,
            layout=layout,
            model=model_digest(cohort.base),
        )

    def _leave_out(self, number: int, nodes: Iterable[int]) -> None:
        """Ask these nodes no more in this round."""
        before = self._left_out[1] if self._left_out[0] == number else frozenset()
        self._left_out = (number, before | frozenset(nodes))


_MEANING = {
    Tier.HONEST_BUT_CURIOUS: "safe from a server that keeps to the protocol but keeps whatever it sees",
    Tier.MALICIOUS: "safe from a server that sends whatever it likes, as far as the nodes' rosters are right",
}


def _given_out(names: tuple[str, ...]) -> str:
    """Return what of some metrics leaves the masked vectors."""
    return f"only the means of {', '.join(names)} are given out" if names else "none is given out"
