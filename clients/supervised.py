"""Supervised local training, FedAvg's and FedProx's client: one client or a cohort in one jitted program."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import jax
import numpy as np
import optax
from numpy.typing import NDArray

from fl_plugins.errors import ConfigError, ConfigTypeError
from fl_plugins.pytrees import flatten_named, unflatten_named
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.spec import build
from fl_plugins.training import (
    CohortResult,
    CohortSum,
    Dataset,
    NamedArrays,
    PerExample,
    PyTree,
    Task,
    TrainResult,
)

from .buckets import check_not_empty
from .cohort import CohortProgram
from .cohort_sum import CohortSumProgram
from .compilation_cache import enable_compilation_cache
from .local_train import LocalTrainOutput, make_evaluate, make_local_train

_Mapping = Literal["auto", "loop", "vmap"]

EVALUATION_UNIT = 32
"""Smallest bucket of evaluation; all are powers of two of it."""


@register(
    Kind.CLIENT,
    "supervised",
    paper="McMahan et al. 2017, Algorithm 1 (ClientUpdate); Li et al. 2020, FedProx, Algorithm 2",
)
@dataclass(frozen=True, eq=False)
class Supervised:
    """Train the task's model for some epochs of shuffled mini-batches from the global parameters.

    Build it once per process: its programs are compiled once per bucket of data set sizes and loaded from
    JAX's persistent cache by later processes. The optimizer starts afresh at every call of :meth:`train`.

    Parameters
    ----------
    task : Task
        Model, loss, metrics and data.
    optimizer : str or optax.GradientTransformation
        A registered optimizer, ``'sgd'`` or ``adam(b1=0.8)``, or any optax transformation from Python.
    learning_rate : float
        Given to a named optimizer that does not set its own; > 0. Choose it for the optimizer: the default
        suits SGD with momentum; Adam needs about a fiftieth.
    local_epochs : int
        Passes over the client's examples, E; >= 1.
    batch_size : int
        Examples per step, B; >= 1. A last batch that is smaller is trained on as such.
    proximal_mu : float
        FedProx's μ, the pull towards the global parameters; >= 0, and 0 is FedAvg.
    mapping : {"auto", "loop", "vmap"}
        How a cohort is run: client after client, all clients at once, or by measurement at the first cohort
        (on CPUs always the loop: see :mod:`clients.mapping`).

    Guarantees
    ----------
    On one machine, equal arrays, data and seed give equal bits, in whichever bucket the data lie. Looped, a
    client in a cohort gets the bits that it gets alone; with ``vmap``, sums are taken in another order and
    results agree to rounding, which training carries on. A client that diverges harms no other. Inputs are
    not written to.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule, or the model's parameters are not floating-point.
    """

    task: Task
    optimizer: Annotated[str | optax.GradientTransformation, PluginKind(Kind.OPTIMIZER)] = field(
        default="sgd(momentum=0.9)", kw_only=True
    )
    learning_rate: float = field(default=0.05, kw_only=True)
    local_epochs: int = field(default=2, kw_only=True)
    batch_size: int = field(default=16, kw_only=True)
    proximal_mu: float = field(default=0.0, kw_only=True)
    mapping: _Mapping = field(default="auto", kw_only=True)
    _like: dict[str, PyTree] = field(init=False, repr=False)
    _init: Callable[..., Any] = field(init=False, repr=False)
    _train: CohortProgram = field(init=False, repr=False)
    _sum: CohortSumProgram = field(init=False, repr=False)
    _evaluate: CohortProgram = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("local_epochs", "batch_size"):
            _check_count(name, getattr(self, name))
        _check_number("learning_rate", self.learning_rate, positive=True)
        _check_number("proximal_mu", self.proximal_mu, positive=False)
        if self.mapping not in get_args(_Mapping):
            raise ConfigError(
                f"supervised: mapping={self.mapping!r} must be one of {', '.join(get_args(_Mapping))}; "
                "choose one."
            )
        if "loss" in self.task.metrics:
            raise ConfigError(
                f"supervised: task {self.task.name!r} has a metric named 'loss', which is the name of the "
                "loss itself; rename the metric."
            )
        optimizer = named_optimizer(self.optimizer, learning_rate=self.learning_rate)
        enable_compilation_cache()
        like = jax.eval_shape(self.task.model.init, jax.random.key(0))
        _check_variables(like, task=self.task.name)
        values: Mapping[str, PerExample] = {"loss": self.task.loss, **self.task.metrics}
        local_train = make_local_train(
            self.task.model,
            self.task.loss,
            optimizer=optimizer,
            local_epochs=self.local_epochs,
            batch_size=self.batch_size,
            proximal_mu=float(self.proximal_mu),
        )

        def train_one(
            variables: PyTree, x: jax.Array, y: jax.Array, num_examples: jax.Array, words: jax.Array
        ) -> LocalTrainOutput:
            key = jax.random.wrap_key_data(words, impl="threefry2x32")
            return local_train(variables, x, y, num_examples, key)

        evaluate = make_evaluate(self.task.model, values)
        programs = {
            "_like": like,
            # It runs once; optimised, a small CNN's random draws take XLA:CPU seconds to compile.
            "_init": jax.jit(self.task.model.init, compiler_options={"xla_backend_optimization_level": 0}),
            "_train": CohortProgram(function=train_one, unit=self.batch_size, mapping=self.mapping),
            "_sum": CohortSumProgram(function=train_one, unit=self.batch_size, mapping=self.mapping),
            "_evaluate": CohortProgram(function=evaluate, unit=EVALUATION_UNIT, mapping=self.mapping),
        }
        for name, program in programs.items():
            object.__setattr__(self, name, program)

    def init(self, *, seed: int) -> NamedArrays:
        """Return freshly initialised parameters; equal seeds give equal bits."""
        return flatten_named(jax.device_get(self._init(_key(seed))))

    def train(self, arrays: NamedArrays, data: Dataset, *, seed: int) -> TrainResult:
        """Return the parameters after ``local_epochs`` over ``data``, starting from ``arrays``.

        Metrics: ``loss``, the mean over all examples of all epochs, each taken just before the step that
        uses it, and ``last_epoch_loss``, the same over the last epoch only; both without the proximal term.
        What diverges is returned as it is, with its NaN.

        Raises
        ------
        DataError
            If there are no examples.
        StructureError
            If ``arrays`` are not the model's.
        """
        cohort = self.train_cohort(arrays, [data], seeds=[seed])
        return TrainResult(
            arrays={name: rows[0] for name, rows in cohort.arrays.items()},
            num_examples=len(data),
            metrics={name: float(values[0]) for name, values in cohort.metrics.items()},
        )

    def train_cohort(
        self, arrays: NamedArrays, datasets: Sequence[Dataset], *, seeds: Sequence[int]
    ) -> CohortResult:
        """Return what :meth:`train` does for every client, stacked; client i has ``seeds[i]``.

        The memory is that of the data, padded, and of m models: split what is larger.

        Raises
        ------
        DataError
            If a client has no examples, naming its number.
        StructureError
            If ``arrays`` are not the model's.
        """
        check_not_empty(datasets)
        variables = self._variables(arrays)
        if datasets:
            trained, epoch_losses = self._train(variables, datasets, _all_words(datasets, seeds))
        else:
            trained, epoch_losses = _no_rows(self._like), np.zeros((0, self.local_epochs), np.float32)
        return CohortResult(
            arrays=flatten_named(trained),
            num_examples=np.array([len(data) for data in datasets], np.int64),
            metrics=_loss_metrics(epoch_losses),
        )

    def sum_cohort(
        self, arrays: NamedArrays, datasets: Sequence[Dataset], *, seeds: Sequence[int], weighted: bool
    ) -> CohortSum | None:
        """Return the weighted sum of all finite updates without their models, see :mod:`clients.cohort_sum`.

        ``None`` unless clients are looped over and all of the model is float32.

        Raises
        ------
        DataError
            If a client has no examples, naming its number.
        StructureError
            If ``arrays`` are not the model's.
        """
        check_not_empty(datasets)
        variables = self._variables(arrays)
        if (
            not datasets
            or not self._sum.loops
            or any(values.dtype != np.float32 for values in arrays.values())
        ):
            return None
        counts = np.array([len(data) for data in datasets], np.int64)
        weights = counts.astype(np.float64) if weighted else np.ones(len(datasets))
        words = _all_words(datasets, seeds)
        parts, epoch_losses, finite = self._sum.sum(variables, datasets, words, weights=weights)
        keys = list(flatten_named(self._like))
        return CohortSum(
            parts=[(flatten_named(high), flatten_named(low)) for high, low in parts],
            num_examples=counts,
            metrics=_loss_metrics(epoch_losses),
            not_finite={
                int(client): keys[int(finite[client].argmin())]
                for client in np.flatnonzero(~finite.all(axis=1))
            },
        )

    def evaluate(self, arrays: NamedArrays, data: Dataset) -> dict[str, float]:
        """Return ``loss`` and the task's metrics, averaged over the examples.

        Raises
        ------
        DataError
            If there are no examples.
        StructureError
            If ``arrays`` are not the model's.
        """
        return {name: float(values[0]) for name, values in self.evaluate_cohort(arrays, [data]).items()}

    def evaluate_cohort(
        self, arrays: NamedArrays, datasets: Sequence[Dataset]
    ) -> dict[str, NDArray[np.float64]]:
        """Return what :meth:`evaluate` does for every client's examples, ``(m,)`` each.

        Raises
        ------
        DataError
            If a client has no examples, naming its number.
        StructureError
            If ``arrays`` are not the model's.
        """
        check_not_empty(datasets)
        variables = self._variables(arrays)
        if not datasets:
            return {name: np.zeros(0) for name in ("loss", *self.task.metrics)}
        counts = np.array([len(data) for data in datasets], np.float64)
        sums: dict[str, NDArray[Any]] = self._evaluate(variables, datasets)
        return {name: totals.astype(np.float64) / counts for name, totals in sums.items()}

    def _variables(self, arrays: NamedArrays) -> dict[str, PyTree]:
        """Return ``arrays`` as the model's variables, checked."""
        variables: dict[str, PyTree] = unflatten_named(arrays, self._like)
        return variables


def _words(seed: int) -> tuple[int, int]:
    """Return the key data of a seed; all 64 bits count, whether or not JAX's 64-bit mode is on."""
    return seed >> 32 & 0xFFFFFFFF, seed & 0xFFFFFFFF


def _all_words(datasets: Sequence[Dataset], seeds: Sequence[int]) -> NDArray[np.uint32]:
    """Return the key data of every client's seed."""
    return np.array([_words(seed) for _, seed in zip(datasets, seeds, strict=True)], np.uint32)


def _loss_metrics(epoch_losses: NDArray[Any]) -> dict[str, NDArray[np.float64]]:
    """Return what training reports, given ``(m, E)`` mean losses."""
    return {
        "loss": np.mean(epoch_losses, axis=1, dtype=np.float64),
        "last_epoch_loss": epoch_losses[:, -1].astype(np.float64),
    }


def _key(seed: int) -> jax.Array:
    """Return the key of a seed."""
    words = jax.numpy.asarray(np.array(_words(seed), np.uint32))
    key: jax.Array = jax.random.wrap_key_data(words, impl="threefry2x32")
    return key


def _no_rows(like: PyTree) -> PyTree:
    """Return the stacked arrays of no clients."""
    return jax.tree.map(lambda leaf: np.zeros((0, *leaf.shape), leaf.dtype), like)


def named_optimizer(optimizer: Any, *, learning_rate: float) -> optax.GradientTransformation:
    """Return the optax transformation that ``optimizer`` names or is."""
    if isinstance(optimizer, str):
        optimizer = build(Kind.OPTIMIZER, optimizer, defaults={"learning_rate": float(learning_rate)})
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ConfigTypeError(
            f"supervised: optimizer={optimizer!r} must be the name of a registered optimizer or an optax "
            "transformation; try 'sgd'."
        )
    return optimizer


def _check_count(name: str, value: int) -> None:
    """Raise unless ``value`` is an int >= 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigTypeError(f"supervised: {name}={value!r} must be an int; give a whole number.")
    if value < 1:
        raise ConfigError(f"supervised: {name}={value} must be >= 1; raise it.")


def _check_number(name: str, value: float, *, positive: bool) -> None:
    """Raise unless ``value`` is finite and > 0 (or >= 0)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigTypeError(f"supervised: {name}={value!r} must be a number; give an int or a float.")
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise ConfigError(
            f"supervised: {name}={value!r} must be finite and {'>' if positive else '>='} 0; choose such a "
            "number."
        )


def _check_variables(like: dict[str, PyTree], *, task: str) -> None:
    """Raise unless the model has parameters and all of them are floating-point."""
    parameters: dict[str, NDArray[Any]] = {
        "/".join(str(getattr(part, "key", part)) for part in path): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(like.get("params", {}))[0]
    }
    if not parameters:
        raise ConfigError(
            f"supervised: the model of task {task!r} has no parameters; nothing can be trained."
        )
    for name, leaf in parameters.items():
        if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
            raise ConfigError(
                f"supervised: parameter {name!r} of task {task!r} has dtype {leaf.dtype}, but only "
                "floating-point parameters can be trained; move it to another collection."
            )
