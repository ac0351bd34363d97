"""What a task gives and what a trainer does: the interface between data, model and federation.

A *task* is a model and its data. A *trainer* turns global parameters and one client's data into that
client's new parameters. Neither knows Flower: a trainer is tested without a network.

Parameters travel as *named arrays*: a flat ``dict`` from tree path to NumPy array. The first part of a
path is the collection: ``params/...`` is trained, ``batch_stats/...`` and ``state/...`` are carried along.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

NamedArrays = dict[str, NDArray[Any]]
"""Flat mapping from tree path (``"params/dense/kernel"``) to array, in a fixed order."""

PyTree = Any
"""Any nesting of dicts, lists and tuples with arrays as leaves (a JAX pytree)."""


@dataclass(frozen=True)
class Dataset:
    """Examples of one client: ``x`` is ``(n, ...)``, ``y`` is ``(n,)`` or ``(n, ...)``.

    Raises
    ------
    DataError
        If ``x`` and ``y`` do not have the same number of examples.
    """

    x: NDArray[Any]
    y: NDArray[Any]

    def __post_init__(self) -> None:
        if self.x.ndim == 0 or self.y.ndim == 0 or len(self.x) != len(self.y):
            raise DataError(
                f"Dataset: x has shape {self.x.shape} and y {self.y.shape}, but both need the same first "
                "axis (examples); check the task's loader."
            )

    def __len__(self) -> int:
        return len(self.x)

    def take(self, indices: NDArray[np.integer[Any]]) -> "Dataset":
        """Return the examples at ``indices``, in that order."""
        return Dataset(self.x[indices], self.y[indices])


@dataclass(frozen=True)
class ClientData:
    """One client's examples: what it trains on and what it evaluates on (which may be empty)."""

    train: Dataset
    validation: Dataset


@dataclass(frozen=True, kw_only=True)
class Model:
    """A pure model: ``init(key) -> variables`` and ``apply(variables, x, train=, key=)``.

    ``variables`` is ``{"params": pytree, ...}``; every collection beside ``params`` (``batch_stats``,
    ``state``) is non-trainable. ``apply`` returns ``(outputs, variables_without_params)``: the outputs for
    ``x`` of shape ``(b, ...)`` and the updated non-trainable collections (unchanged if ``train`` is false).
    """

    init: Callable[[Any], dict[str, PyTree]]
    apply: Callable[..., tuple[Any, dict[str, PyTree]]]


PerExample = Callable[[Any, Any], Any]
"""``(outputs, y) -> (b,)``: one value per example, traceable by JAX."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model with its loss, metrics and data.

    Parameters
    ----------
    name : str
        The name in messages and logs.
    model : Model
        See :class:`Model`; ``clients.models`` adapts Flax modules.
    loss : PerExample
        Per-example loss; the trainer averages it over real (not padding) examples.
    metrics : Mapping[str, PerExample]
        Further per-example values that evaluation averages, for example ``accuracy``.
    load_partition : Callable[[int, int], ClientData]
        ``(partition_id, num_partitions)`` to that client's data; deterministic.
    load_test : Callable[[], Dataset], optional
        The held-out examples for evaluation at the server, if there are any.
    num_classes : int, optional
        Number of classes of a classification task (label attacks need it).
    """

    name: str
    model: Model
    loss: PerExample
    metrics: Mapping[str, PerExample] = field(default_factory=dict)
    load_partition: Callable[[int, int], ClientData]
    load_test: Callable[[], Dataset] | None = None
    num_classes: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What local training gives back: new *parameters* (not the update), examples used, metrics."""

    arrays: NamedArrays
    num_examples: int
    metrics: dict[str, float]


@runtime_checkable
class Trainer(Protocol):
    """A client plugin: built once per process with ``task=...``, then called for every message."""

    def init(self, *, seed: int) -> NamedArrays:
        """Return freshly initialised parameters; equal seeds give equal bits."""
        ...

    def train(self, arrays: NamedArrays, data: Dataset, *, seed: int) -> TrainResult:
        """Train locally from ``arrays`` on ``data``; raises ``DataError`` if it has no examples."""
        ...

    def evaluate(self, arrays: NamedArrays, data: Dataset) -> dict[str, float]:
        """Return ``loss`` and the task's metrics, averaged over ``data``'s examples."""
        ...


@dataclass(frozen=True, kw_only=True)
class CohortResult:
    """What training m clients at once gives back; row i of everything is client i's.

    Parameters
    ----------
    arrays : NamedArrays
        New *parameters*, ``(m, ...)`` each: the model's arrays with the clients as first axis.
    num_examples : NDArray
        ``(m,)`` int64.
    metrics : Mapping[str, NDArray]
        ``(m,)`` float64 each: what :meth:`Trainer.train` reports for one client.
    """

    arrays: NamedArrays
    num_examples: NDArray[np.int64]
    metrics: Mapping[str, NDArray[np.float64]]


@runtime_checkable
class TrainsCohorts(Protocol):
    """What a :class:`Trainer` may have besides: many clients in one compiled program.

    Client i's part of the result is bit for bit what ``train(arrays, datasets[i], seed=seeds[i])`` returns.
    """

    def train_cohort(
        self, arrays: NamedArrays, datasets: Sequence[Dataset], *, seeds: Sequence[int]
    ) -> CohortResult:
        """Train every client from ``arrays``; raises ``DataError`` if one has no examples."""
        ...

    def evaluate_cohort(
        self, arrays: NamedArrays, datasets: Sequence[Dataset]
    ) -> dict[str, NDArray[np.float64]]:
        """Return what ``evaluate`` does, ``(m,)`` per metric."""
        ...


@dataclass(frozen=True, kw_only=True)
class CohortSum:
    """Σ weight · update of a cohort, without its models.

    Parameters
    ----------
    parts : Sequence[tuple[NamedArrays, NamedArrays]]
        ``(high, low)`` in float64, of the model's shapes, each part as in
        :class:`fl_plugins.aggregation.streaming.WeightedSum`; the sum is that of all parts.
    num_examples, metrics
        As in :class:`CohortResult`.
    not_finite : Mapping[int, str]
        Clients whose update is not finite, which are not in the sum: an array of theirs where it is not.
    """

    parts: Sequence[tuple[NamedArrays, NamedArrays]]
    num_examples: NDArray[np.int64]
    metrics: Mapping[str, NDArray[np.float64]]
    not_finite: Mapping[int, str]


@runtime_checkable
class SumsCohorts(Protocol):
    """What a :class:`TrainsCohorts` may have besides: it adds updates up itself, while they are in cache."""

    def sum_cohort(
        self, arrays: NamedArrays, datasets: Sequence[Dataset], *, seeds: Sequence[int], weighted: bool
    ) -> CohortSum | None:
        """Train every client; weight updates by numbers of examples or all by 1; ``None`` if it cannot here.

        The sum is bit for bit the one of what ``train_cohort`` returns.
        """
        ...


@runtime_checkable
class Attack(Protocol):
    """A hostile client's behaviour, for benchmarks and tests: poisons its data, its update, or both."""

    num_byzantine: int
    """Number of hostile clients: the partitions with id ``0 .. num_byzantine - 1``."""

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:
        """Return the data that the hostile client trains on."""
        ...

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:
        """Return the update (float arrays only: client − global) that the hostile client sends."""
        ...


@runtime_checkable
class SharesIdentity(Protocol):
    """What an :class:`Attack` may have besides: several hostile clients that act as one (sybils)."""

    def acts_as(self, partition_id: int) -> int:
        """Return the partition whose data and seeds the hostile client ``partition_id`` uses."""
        ...


@runtime_checkable
class TrainsVirtualClients(Protocol):
    """What an :class:`Attack` may have besides: several honest trainings, to see how updates spread.

    The hostile client trains once on every part, and sends ``poison_update(combine_updates(...))``.
    """

    def split_data(self, data: Dataset, *, seed: int) -> list[Dataset]:
        """Return the data of each virtual client; at least one, none empty."""
        ...

    def combine_updates(self, updates: list[NamedArrays], *, seed: int) -> NamedArrays:
        """Return one update from the virtual clients' updates (float arrays only)."""
        ...


@runtime_checkable
class SeesParameters(Protocol):
    """What an :class:`Attack` may have besides: it remembers the global parameters, within one process."""

    def observe(self, arrays: NamedArrays, *, number: int) -> None:
        """Take note of what round ``number`` starts from; called before a process trains any client in it.

        It may be called several times for one round, and for rounds of several runs. ``arrays`` are only
        lent.
        """
        ...


@runtime_checkable
class HasGoal(Protocol):
    """What an :class:`Attack` may have besides: a success that plain accuracy does not show (a backdoor)."""

    def success_data(self, data: Dataset) -> Dataset:
        """Return test examples on which accuracy *is* the attack's success rate."""
        ...
