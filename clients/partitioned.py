"""From one data set on this machine to the data of partition i of N, for simulations and demos."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypedDict, get_args

import numpy as np

from fl_plugins.errors import ConfigError, ConfigTypeError, DataError
from fl_plugins.registry import explains
from fl_plugins.seeds import derive_rng
from fl_plugins.training import ClientData, Dataset

from .partition import Indices, by_label, check_partition_id, dirichlet, hold_out, iid

Partition = Literal["iid", "dirichlet", "by_label"]
"""How examples are dealt to clients; see :mod:`clients.partition`."""


class PartitionOptions(TypedDict, total=False):
    """What a task lets its users choose; :class:`Partitioned` documents and checks it."""

    partition: Partition
    alpha: float
    labels_per_client: int
    min_examples: int
    test_fraction: float
    validation_fraction: float
    seed: int


@explains(PartitionOptions)
@dataclass(frozen=True, kw_only=True)
class Partitioned:
    """A data set, split into a common test set and ``num_partitions`` clients with validation parts.

    Every machine that builds it with equal parameters gets equal splits. Two loads of one partition return
    the same arrays.

    Parameters
    ----------
    task : str
        The task's name, for messages and seeds.
    load : Callable[[], Dataset]
        Returns the whole data set.
    partition : {"iid", "dirichlet", "by_label"}
        How training examples are dealt.
    alpha : float
        Concentration of ``dirichlet``: small is uneven.
    labels_per_client : int
        Classes per client of ``by_label`` (1 if there are only two and clients shall differ).
    min_examples : int
        With ``dirichlet``, draw again until every client has as many.
    test_fraction : float
        Share of all examples that no client gets, stratified by class; in [0, 1). With 0 there is no test
        set.
    validation_fraction : float
        Share of each client's examples that it evaluates on instead of training; in [0, 1), rounded down.
    seed : int
        Seed of all splits (not of training): equal on all nodes.
    standardise : bool
        Shift and scale every feature by its mean and standard deviation over the training examples of *all*
        clients. A real federation has to take these from public data or compute them federatedly.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    task: str
    load: Callable[[], Dataset]
    partition: Partition = "iid"
    alpha: float = 0.5
    labels_per_client: int = 2
    min_examples: int = 0
    test_fraction: float = 0.2
    validation_fraction: float = 0.1
    seed: int = 0
    standardise: bool = False

    def __post_init__(self) -> None:
        if self.partition not in get_args(Partition):
            raise ConfigError(
                f"{self.task}: partition={self.partition!r} must be one of {', '.join(get_args(Partition))}; "
                "choose one."
            )
        for name in ("test_fraction", "validation_fraction"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(
                    f"{self.task}: {name}={value!r} must be in [0, 1); 0.2 keeps a fifth of the examples."
                )
        if not (0 < self.alpha < float("inf")):
            raise ConfigError(f"{self.task}: alpha={self.alpha!r} must be a finite number > 0; try 0.5.")
        for name, least in (("labels_per_client", 1), ("min_examples", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigTypeError(f"{self.task}: {name}={value!r} must be an int; give a whole number.")
            if value < least:
                raise ConfigError(f"{self.task}: {name}={value!r} must be >= {least}; raise it.")

    def load_partition(self, partition_id: int, num_partitions: int) -> ClientData:
        """Return the training and validation examples of one client.

        Raises
        ------
        DataError
            If the partition does not exist or has no examples.
        """
        check_partition_id(partition_id, num_partitions, task=self.task)
        return self._client_data(partition_id, num_partitions)

    @property
    def load_test(self) -> Callable[[], Dataset] | None:
        """What returns the examples that no client has; ``None`` if ``test_fraction`` is 0.

        It raises ``DataError`` if so small a fraction leaves no examples.
        """
        return self._load_test if self.test_fraction > 0 else None

    @functools.cached_property
    def _splits(self) -> tuple[Dataset, Dataset]:
        data = self.load()
        rest, held_out = hold_out(data.y, self.test_fraction, rng=derive_rng(self.seed, self.task, "test"))
        train, test = data.take(rest), data.take(held_out)
        if not self.standardise:
            return train, test
        mean, deviation = train.x.mean(axis=0), train.x.std(axis=0)
        scale = np.where(deviation > 0, deviation, 1)
        return (
            Dataset(((train.x - mean) / scale).astype(np.float32), train.y),
            Dataset(((test.x - mean) / scale).astype(np.float32), test.y),
        )

    @property
    def _train(self) -> Dataset:
        return self._splits[0]

    @property
    def _test(self) -> Dataset:
        return self._splits[1]

    def _load_test(self) -> Dataset:
        """Return the test set."""
        if len(self._test) == 0:
            raise DataError(
                f"{self.task}: test_fraction={self.test_fraction!r} of {len(self._train)} examples, rounded "
                "for each class, is none; raise it, or set it to 0 for no test set."
            )
        return self._test

    @functools.cached_property
    def _assignments(self) -> dict[int, list[Indices]]:
        return {}

    @functools.cached_property
    def _loaded(self) -> dict[tuple[int, int], ClientData]:
        return {}

    def _assignment(self, num_partitions: int) -> list[Indices]:
        """Return every client's indices into the training examples."""
        if num_partitions not in self._assignments:
            labels = self._train.y
            rng = derive_rng(self.seed, self.task, "partition", num_partitions)
            match self.partition:
                case "iid":
                    parts = iid(labels, num_partitions, rng=rng)
                case "dirichlet":
                    parts = dirichlet(
                        labels, num_partitions, alpha=self.alpha, rng=rng, min_examples=self.min_examples
                    )
                case "by_label":
                    parts = by_label(
                        labels, num_partitions, labels_per_client=self.labels_per_client, rng=rng
                    )
            self._assignments[num_partitions] = parts
        return self._assignments[num_partitions]

    def _client_data(self, partition_id: int, num_partitions: int) -> ClientData:
        """Return one client's examples, split into training and validation."""
        key = (partition_id, num_partitions)
        if key not in self._loaded:
            indices = self._assignment(num_partitions)[partition_id]
            if len(indices) == 0:
                raise DataError(
                    f"{self.task}: partition {partition_id} of {num_partitions} has no examples; use fewer "
                    f"partitions (there are {len(self._train)} training examples), or with "
                    "partition='dirichlet' raise alpha or set min_examples=1."
                )
            rng = derive_rng(self.seed, self.task, "validation", num_partitions, partition_id)
            shuffled = rng.permutation(indices)
            num_validation = int(self.validation_fraction * len(indices))
            self._loaded[key] = ClientData(
                train=self._train.take(shuffled[num_validation:]),
                validation=self._train.take(shuffled[:num_validation]),
            )
        return self._loaded[key]
