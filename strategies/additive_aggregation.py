"""Secure aggregation by additive sharing over helper SuperNodes: each client sends one message.

The sums of Corrigan-Gibbs & Boneh, "Prio" (NSDI 2017): a client hides its update under one mask for each
helper, a helper reveals the sum of its masks of the clients that answered, and the server subtracts.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from flwr.serverapp import Grid

from fl_plugins import wire
from fl_plugins.additive_round import LAYER, AdditiveSettings
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.errors import ConfigError
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.run_options import RunOptions
from fl_plugins.secagg import AdditiveServerSession, RoundParameters, Tier
from fl_plugins.secure_identities import read_roster

from .base import FederatedStrategy
from .helper_nodes import HelperRoster
from .opening_exchange import OpeningExchange
from .secure_aggregation import SecureAggregation
from .secure_exchange import ExchangeOptions
from .session import Phase


@register(
    Kind.STRATEGY,
    LAYER,
    paper="Corrigan-Gibbs & Boneh 2017, Prio",
    contract=Contract(access=Access.SUM, weighting=Weighting.EXAMPLES),
)
class AdditiveAggregation(SecureAggregation):
    """Run a linear strategy such that no client's update is ever seen, with the help of nodes without data.

    ``additive_aggregation(fedavg(), helpers=2, max_weight=1000)``; helpers are the SuperNodes whose own
    config has ``secagg-role = "helper"``.

    Parameters
    ----------
    inner : FederatedStrategy
        A strategy whose rule needs the sum only, with its weighting, settings and server optimizer.
    helpers : int
        How many helper nodes there are; all must answer, else the attempt gives no sum.
    tier : str
        ``"honest-but-curious"``: the server passes keys on as they are. ``"malicious"``: it may send what it
        likes; clients and helpers have identities, and rosters of each other.
    num_bits, clip, max_weight, min_clients, metrics, evaluate, max_metric, stage_timeout_s
        As in ``secure_aggregation``.
    roster : str, optional
        For the malicious tier: file with the helpers' public identities. Clients go by their own; here it
        leaves out early whom they would refuse.

    Guarantees
    ----------
    - While one helper keeps to the protocol and does not collude with the server, the server learns the sum
      over one set of at least ``min_clients`` of the cohort in each attempt, and nothing else of the updates.
    - In the malicious tier that holds for a server that sends what it likes, if the honest helper's roster
      lists clients only, and each client's roster the helpers.
    - A client that drops out, answers late or sends nonsense is left out, and has cost nobody anything.
    - What is in the sum, and what becomes of it, is as in ``secure_aggregation``.

    Raises
    ------
    ContractError
        If the inner strategy must see every update, or does more than choose a rule.
    """

    layer = LAYER
    secure: AdditiveSettings

    def __init__(
        self,
        inner: Annotated[FederatedStrategy, PluginKind(Kind.STRATEGY)],
        *,
        helpers: int = 2,
        tier: Literal["honest-but-curious", "malicious"] = "honest-but-curious",
        num_bits: Literal[16, 32] = 32,
        clip: float = 1.0,
        max_weight: float | None = None,
        min_clients: int = 3,
        metrics: tuple[str, ...] = (),
        evaluate: tuple[str, ...] = (),
        max_metric: float = 100.0,
        stage_timeout_s: float = 120.0,
        roster: str | None = None,
    ) -> None:
        super().__init__(
            inner,
            tier=tier,
            num_bits=num_bits,
            clip=clip,
            max_weight=max_weight,
            min_clients=min_clients,
            metrics=metrics,
            evaluate=evaluate,
            max_metric=max_metric,
            stage_timeout_s=stage_timeout_s,
        )
        if roster is not None and tier != Tier.MALICIOUS.value:
            raise ConfigError(f"{LAYER}: a roster is given, but it is for tier='malicious'; set it.")
        self.secure = AdditiveSettings(**vars(self.secure), helpers=helpers)
        self._known = None if roster is None else frozenset(read_roster(Path(roster), at_least=1).values())
        self._helpers: list[int] = []

    def begin(self, options: RunOptions, *, seed: int) -> None:
        """Start a run; which nodes help is asked when they connect."""
        super().begin(options, seed=seed)
        roster = HelperRoster(
            roll_call=options.roll_call,
            announced={wire.SCHEMA: wire.SCHEMA_VERSION, **self.announce("train", 0)},
            config_key=self.settings.configrecord_key,
            answer_timeout_s=min(self.stage_timeout_s, self._session.timeout_s),
            known=self._known,
        )
        self._session = replace(self._session, roster=roster)

    def trusts(self) -> str:
        """Return whom the clients are safe from, and on what that rests."""
        return (
            f"safe from the server while one of {self.secure.helpers} helpers is honest and does not collude "
            f"with it, and {_KEYS[Tier(self.secure.tier)]}"
        )

    def draw(self, grid: Grid, phase: Phase, number: int, attempt: int) -> tuple[dict[str, int], int]:
        """Find the helpers, and return a cohort of other nodes.

        Raises
        ------
        QuorumError
            If helpers are missing, or fewer than ``min_clients`` clients are left.
        """
        roster = self._session.roster
        assert isinstance(roster, HelperRoster)
        self._helpers = roster.wait_for_helpers(grid, self.secure.helpers, timeout_s=roster.answer_timeout_s)
        return super().draw(grid, phase, number, attempt)

    def _begin_exchange(
        self, parameters: RoundParameters, options: ExchangeOptions, grid: Grid
    ) -> tuple[OpeningExchange, Mapping[int, bytes]]:
        """Ask the helpers for keys; return this attempt's conversation, and what goes to each client."""
        session = AdditiveServerSession(
            parameters, options["cohort"].clients.values(), self._helpers, roster=self._known
        )
        talk = OpeningExchange(session, facts={"helpers": self._helpers}, **options)
        return talk, talk.begin(grid)


_KEYS: Mapping[Tier, str] = {
    Tier.HONEST_BUT_CURIOUS: "it passes their keys on as they are",
    Tier.MALICIOUS: "the nodes' rosters of clients and helpers are right",
}
