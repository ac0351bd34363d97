"""Local differential privacy around any strategy: clients protect themselves, the server says how."""

from collections.abc import Iterable
from typing import Annotated, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid

from fl_plugins import wire
from fl_plugins.checks import check_int, check_number
from fl_plugins.clipped_updates import check_untrained_arrays, trained_keys
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.errors import ContractError, PreconditionError
from fl_plugins.local_privacy import local_release
from fl_plugins.records import Layout, to_named
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.spec import Spec

from .base import FederatedStrategy
from .session import Phase
from .wrapping import check_wrappable

OWNER = "local_dp"


@register(
    Kind.STRATEGY,
    "local_dp",
    paper="Balle & Wang 2018, Improving the Gaussian Mechanism for Differential Privacy",
    contract=Contract(access=Access.SUM, weighting=Weighting.UNIFORM),
)
class LocalDp(FederatedStrategy):
    """Announce that every client clips and noises its own update before it is sent.

    ``local_dp(fedavg(weighting="uniform"), clip_norm=0.5, epsilon=8.0, delta=1e-5, max_rounds=20)``. The rule
    may be any: what it sees is protected already. Each node keeps its own account, see
    ``clients.mods.local_dp``.

    Parameters
    ----------
    inner : FederatedStrategy
        A strategy that only chooses its rule; every client counts the same.
    clip_norm : float
        The largest norm of an update that is left as it is, > 0.
    epsilon, delta : float
        What all replies of one client may tell, whatever its data are (adjacency ``replace``).
    max_rounds : int
        How often one client may reply.
    unprotected_metrics : bool
        Let clients send metrics and evaluations as they are; by default they are withheld.
    untrained_arrays : str
        What to do with arrays that are not trained (integers, normalisation statistics): ``"refuse"`` the
        model, or ``"keep"`` them at their initial values.

    Raises
    ------
    ContractError
        If the inner strategy weights by examples, or does more than choose a rule.
    """

    def __init__(
        self,
        inner: Annotated[FederatedStrategy, PluginKind(Kind.STRATEGY)],
        *,
        clip_norm: float,
        epsilon: float,
        delta: float,
        max_rounds: int,
        unprotected_metrics: bool = False,
        untrained_arrays: Literal["refuse", "keep"] = "refuse",
    ) -> None:
        strategy = check_wrappable(OWNER, inner)
        if strategy.weighting is Weighting.EXAMPLES:
            raise ContractError(
                f'{OWNER}: the inner strategy has weighting="examples", but clients withhold how many they '
                'have; give fedavg(weighting="uniform").'
            )
        super().__init__(strategy.aggregator, weighting=strategy.weighting, **strategy.options())
        check_number(OWNER, "clip_norm", clip_norm, minimum=0.0, open_below=True)
        check_int(OWNER, "max_rounds", max_rounds, minimum=1)
        check_untrained_arrays(OWNER, untrained_arrays)
        local_release(epsilon=epsilon, delta=delta, max_rounds=max_rounds)  # that there is such noise
        self.max_rounds, self.unprotected_metrics = max_rounds, unprotected_metrics
        self.untrained_arrays = untrained_arrays
        arguments = {
            "clip_norm": float(clip_norm),
            "epsilon": float(epsilon),
            "delta": float(delta),
            "max_rounds": max_rounds,
            "unprotected_metrics": unprotected_metrics,
        }
        self._layer = str(Spec(OWNER, kwargs=tuple(arguments.items())))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample a cohort and return its messages.

        Raises
        ------
        ConfigError
            If the model has arrays that are not protected.
        """
        trained_keys(OWNER, Layout.of(to_named(arrays)), keep_others=self.untrained_arrays == "keep")
        return super().configure_train(server_round, arrays, config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return no messages: clients' own metrics are withheld, unless ``unprotected_metrics`` is set."""
        if not self.unprotected_metrics:
            return []
        return super().configure_evaluate(server_round, arrays, config, grid)

    def stop_before(self, number: int) -> str | None:
        """Return why round ``number`` may not be run: every client has replied as often as it may."""
        if number > self.max_rounds and self.settings.fraction_train == 1.0:
            return f"every client has replied in max_rounds={self.max_rounds} rounds, which is what ε is for"
        return None

    def announce(self, phase: Phase, number: int) -> dict[str, list[str]]:  # noqa: ARG002
        """Return the clients' part."""
        return {wire.LAYERS: [self._layer]}

    def draw(self, grid: Grid, phase: Phase, number: int, attempt: int) -> tuple[dict[str, int], int]:
        """Draw a cohort of nodes that are one client each.

        Raises
        ------
        PreconditionError
            If a node hosts virtual clients.
        """
        cohort, available = super().draw(grid, phase, number, attempt)
        if any(map(self._session.roster.is_host, cohort.values())):
            raise PreconditionError(
                f"{OWNER}: a node hosts virtual clients, but every client keeps its own account; set "
                "virtual-clients=0."
            )
        return cohort, available

    def describe(self) -> str:
        """Return one line that identifies the layer, the rule and every setting."""
        return f"{super().describe()[:-1]}, {self._layer}, untrained_arrays={self.untrained_arrays!r})"
