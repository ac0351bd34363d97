"""The options that every strategy takes: sampling, quorum, weights, record keys."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

from fl_plugins.checks import check_int, check_number
from fl_plugins.errors import ConfigError
from fl_plugins.registry import Kind, PluginKind, explains
from fl_plugins.wire import ARRAYS, CONFIG, NUM_EXAMPLES


class StrategyOptions(TypedDict, total=False):
    """Keyword arguments common to all strategies; :class:`Settings` documents and checks the others.

    Parameters
    ----------
    server_optimizer : optax.GradientTransformation, optional
        Applied at the server to the aggregated update, for example ``sgd(learning_rate=1.0, momentum=0.9)``.
    fallback : Aggregator, optional
        A rule with a weaker precondition, for example ``median()``, that stands in for a round in which fewer
        replies than the strategy's own rule needs are usable; the event log says so. Without it, see
        ``on_shortfall``.
    """

    fraction_train: float
    num_train_nodes: int | None
    min_train_nodes: int
    fraction_evaluate: float
    num_evaluate_nodes: int | None
    min_evaluate_nodes: int
    min_available_nodes: int
    quorum: float
    max_attempts: int
    max_num_examples: int
    on_shortfall: Literal["retry", "raise"]
    server_optimizer: Annotated[Any | None, PluginKind(Kind.OPTIMIZER)]
    fallback: Annotated[Any | None, PluginKind(Kind.AGGREGATOR)]
    weighted_by_key: str
    arrayrecord_key: str
    configrecord_key: str


@explains(StrategyOptions)
@dataclass(frozen=True, kw_only=True)
class Settings:
    """Checked settings of a strategy.

    Parameters
    ----------
    fraction_train, fraction_evaluate : float
        Part of the connected nodes to sample, in ``[0, 1]``; 0 skips that phase.
    num_train_nodes, num_evaluate_nodes : int, optional
        Sample exactly so many nodes instead.
    min_train_nodes, min_evaluate_nodes : int
        Sample at least so many nodes, whatever the fraction gives.
    min_available_nodes : int
        Wait until at least so many nodes are connected.
    quorum : float
        Part of the sampled nodes, in ``(0, 1]``, whose training replies must be usable.
    max_attempts : int
        How often a round without quorum is tried in all before the run ends.
    on_shortfall : str
        What to do with a round that has too few usable replies, for the quorum or for the rule's
        precondition: ``"retry"`` it with a new cohort, up to ``max_attempts`` times, or ``"raise"`` at once.
    max_num_examples : int
        Largest claimed number of examples that is believed; a larger claim is quarantined.
    weighted_by_key : str
        Metric that holds a reply's number of examples.
    arrayrecord_key, configrecord_key : str
        Keys of the records in the messages that are sent.
    """

    fraction_train: float = 1.0
    num_train_nodes: int | None = None
    min_train_nodes: int = 2
    fraction_evaluate: float = 1.0
    num_evaluate_nodes: int | None = None
    min_evaluate_nodes: int = 2
    min_available_nodes: int = 2
    quorum: float = 0.5
    max_attempts: int = 3
    on_shortfall: Literal["retry", "raise"] = "retry"
    max_num_examples: int = 10_000_000
    weighted_by_key: str = NUM_EXAMPLES
    arrayrecord_key: str = ARRAYS
    configrecord_key: str = CONFIG

    def __post_init__(self) -> None:
        for name in ("fraction_train", "fraction_evaluate"):
            check_number("strategy", name, getattr(self, name), minimum=0, maximum=1)
        for name in ("num_train_nodes", "num_evaluate_nodes"):
            if getattr(self, name) is not None:
                check_int("strategy", name, getattr(self, name), minimum=1)
        for name in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"):
            check_int("strategy", name, getattr(self, name), minimum=1)
        check_int("strategy", "max_attempts", self.max_attempts, minimum=1)
        check_int("strategy", "max_num_examples", self.max_num_examples, minimum=1)
        check_number("strategy", "quorum", self.quorum, minimum=0, maximum=1, open_below=True)
        if self.on_shortfall not in ("retry", "raise"):
            raise ConfigError(
                f"strategy: on_shortfall={self.on_shortfall!r}, but it is 'retry' or 'raise'; a rule that "
                "stands in is given as fallback."
            )

    def changed(self) -> list[str]:
        """Return ``name=value`` of every setting that is not its default."""
        return [
            f"{name}={value!r}" for name, value in vars(self).items() if value != getattr(type(self), name)
        ]

    def cohort_size(self, phase: Literal["train", "evaluate"], num_connected: int) -> int:
        """Return how many nodes a cohort needs when ``num_connected`` are there; 0 skips the phase."""
        exact: int | None = getattr(self, f"num_{phase}_nodes")
        fraction: float = getattr(self, f"fraction_{phase}")
        if fraction == 0.0:
            return 0
        if exact is not None:
            return exact
        least: int = getattr(self, f"min_{phase}_nodes")
        return max(int(round(fraction * num_connected, 9)), least)
