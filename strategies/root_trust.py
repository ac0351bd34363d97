"""Trust from a small clean data set at the server (FLTrust: Cao et al. 2021) as a Flower strategy."""

from collections.abc import Callable
from typing import Annotated, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from fl_plugins.aggregation.core import Aggregate, Aggregator
from fl_plugins.aggregation.root_trust import RootTrust as RootTrustRule
from fl_plugins.contracts import Access, Contract, Weighting
from fl_plugins.errors import ConfigError, DivergenceError
from fl_plugins.records import Layout, UpdateRows
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.seeds import derive_seed
from fl_plugins.spec import build
from fl_plugins.training import NamedArrays

from .base import FederatedStrategy
from .options import StrategyOptions

TrainAtRoot = Callable[[NamedArrays, int], NamedArrays]
"""``(parameters, seed) -> parameters`` after training on the server's clean data, with the same arrays."""


@register(
    Kind.STRATEGY,
    "root_trust",
    paper="Cao et al. 2021, FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping",
    contract=Contract(access=Access.EVERY_UPDATE, weighting=Weighting.UNIFORM),
)
class RootTrust(FederatedStrategy):
    """Train on clean data at the server too, and average clients by how far they point the same way.

    The server needs a task and a trainer, by name, as the clients have them; or, in Python, ``train``.
    Any number of clients may be hostile, but the result is as good as the root data are: they must look
    like what the model is meant for.

    Parameters
    ----------
    task : str
        The task that the root data come from, for example ``digits()``.
    client : str
        The trainer, for example ``supervised(local_epochs=1)``: the same settings as at the clients.
    root_partitions : int
        The root data are one of so many parts of the task's training data.
    root_partition : int
        Which one of them, from 0.
    train : Callable, optional
        Instead of all these: ``(parameters, seed) -> parameters``, trained on the root data.
    **options
        See :class:`strategies.options.Settings`.
    """

    def __init__(
        self,
        *,
        task: Annotated[str, PluginKind(Kind.TASK)] = "",
        client: Annotated[str, PluginKind(Kind.CLIENT)] = "supervised",
        root_partitions: int = 100,
        root_partition: int = 0,
        train: TrainAtRoot | None = None,
        **options: Unpack[StrategyOptions],
    ) -> None:
        if (train is None) == (not task):
            raise ConfigError(
                f"root_trust: task={task!r} and train={train!r}, but exactly one of them says how the server "
                "trains; give the task that the run has."
            )
        if not 0 <= root_partition < root_partitions:
            raise ConfigError(
                f"root_trust: root_partition={root_partition}, but it is in [0, root_partitions = "
                f"{root_partitions})."
            )
        super().__init__(_AnyCohort(), **options)
        self._train = train or _trainer(task, client, root_partition, root_partitions)
        self._source = f"{task}, {client}, {root_partition} of {root_partitions}" if task else "train"

    def describe(self) -> str:
        """Return one line that identifies the rule, where the root data come from, and every setting."""
        return f"{super().describe()[:-1]}, root={self._source!r})"

    def aggregate_rows(
        self,
        rule: Aggregator,
        rows: UpdateRows,
        weights: NDArray[np.float64] | None,
        *,
        base: NamedArrays,
        state: NamedArrays,
    ) -> Aggregate:
        """Train on the root data from ``base`` and weight the updates by their cosine with that update.

        Raises
        ------
        DivergenceError
            If training on the root data gives NaN or infinite values.
        PreconditionError
            If no update points the root update's way.
        """
        if not isinstance(rule, _AnyCohort):
            return super().aggregate_rows(rule, rows, weights, base=base, state=state)
        number = self._cohort.number if self._cohort else 0
        trained = self._train(dict(base), derive_seed(self._session.seed, "root", number))
        layout = Layout.of(base)
        with np.errstate(over="ignore", invalid="ignore"):
            root_update = layout.flatten(trained) - layout.flatten(base)
        if not np.isfinite(root_update).all():
            raise DivergenceError(
                f"root_trust: round {number}: training on the root data gives NaN or infinite values; lower "
                "the learning rate."
            )
        return RootTrustRule(root_update=root_update)(rows, weights)


class _AnyCohort(RootTrustRule):
    """The rule before its round: it has no root update yet."""

    def __init__(self) -> None:
        super().__init__(root_update=np.zeros(0))

    def __repr__(self) -> str:
        return "RootTrust()"


def _trainer(task_spec: str, client_spec: str, partition: int, num_partitions: int) -> TrainAtRoot:
    """Return the training of a client that has the root data; they are loaded when it is first called."""
    built: dict[str, Any] = {}

    def train(parameters: NamedArrays, seed: int) -> NamedArrays:
        if not built:
            task = build(Kind.TASK, task_spec)
            built["data"] = task.load_partition(partition, num_partitions).train
            built["trainer"] = build(Kind.CLIENT, client_spec, task=task)
        arrays: NamedArrays = built["trainer"].train(parameters, built["data"], seed=seed).arrays
        return arrays

    return train
