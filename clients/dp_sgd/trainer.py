"""The trainer plugin: supervised training whose result hides every single example."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from fl_plugins.checks import check_int, check_number
from fl_plugins.errors import ConfigError, DataError
from fl_plugins.privacy import Accountant, Report
from fl_plugins.pytrees import flatten_named, unflatten_named
from fl_plugins.registry import Kind, PluginKind, register
from fl_plugins.training import Dataset, NamedArrays, PyTree, Task, TrainResult

from ..buckets import bucket_capacity, check_not_empty, stack_in_bucket
from ..supervised import EVALUATION_UNIT, Supervised, named_optimizer
from .accounting import step_release
from .randomness import RandomBits, SystemRandom
from .sampling import draw_batches, pad_batches, physical_size
from .steps import Carry, make_steps, noise_words, trace_model
from .tracing import TracedLoss

_OWNER = "dp_supervised"

MAX_MATERIALISED = 1 << 14
"""Numbers of per-example gradients that are formed for each example (biases, scales) in large batches."""

MICROBATCH = 16
"""Examples at a time where there are more."""

WORDS_BYTES = 32 << 20
"""Memory of the noise that is drawn ahead."""

MAX_AHEAD = 64
"""Steps that it is drawn ahead for."""


class ClippingPlan(NamedTuple):
    """How per-example gradients are clipped: ``method`` and, for each parameter, how and why."""

    method: Literal["ghost", "microbatch"]
    reason: str
    parameters: dict[str, str]


class _Program(NamedTuple):
    """What is compiled for one shape of example."""

    plan: ClippingPlan
    steps: Any
    physical_batch_size: int


@register(Kind.CLIENT, "dp_supervised", paper="Abadi et al. 2016, Algorithm 1 (DP-SGD)")
@dataclass(frozen=True, eq=False, kw_only=True)
class DPSupervised:
    """Train the task's model by DP-SGD: Poisson batches, clipped per-example gradients, Gaussian noise.

    Build it once per process. The optimizer starts afresh at every call of :meth:`train`.

    Parameters
    ----------
    task : Task
        Model, loss, metrics and data. BatchNorm is refused.
    clip_norm : float
        C, the largest Euclidean norm of what one example adds to a step; > 0.
    noise_multiplier : float
        z: every step's sum gets noise of standard deviation z·C; > 0.
    expected_batch_size : int
        B: the mean size of a batch, and what sums are divided by; >= 1.
    num_steps : int
        Steps of one call of :meth:`train`; >= 1.
    sampling_rate : float, optional
        q, the probability of an example to be in a batch. By default B / n, of a client of n examples.
    delta : float
        δ of the ε that is reported; in (0, 1), and well below 1/n.
    optimizer, learning_rate, proximal_mu
        As in :class:`clients.supervised.Supervised`; they see noisy gradients only.

    Guarantees
    ----------
    The returned parameters are (ε, δ)-differentially private with the *record* (one training example) as
    unit, with ε as in the metrics, for one call; :meth:`epsilon` composes several. The adjacency:

    - ``sampling_rate`` given: ``add_remove``, one example more or less. ``num_examples`` is then B / q.
    - else: ``zero_out``, one example that contributes nothing in its place; the number n is public.

    Sampling and noise come from the operating system's generator (AES-256 in counter mode), never from
    ``seed``, which serves dropout alone. An example whose gradient is not finite contributes nothing. Noise
    and sums are float32: as with every DP-SGD in floating point, that noise lies on a grid is not accounted.

    Losses and metrics of the training examples are not reported: they are not noised. :meth:`evaluate` is
    exact and has no guarantee; give it public data, or set ``client-evaluation=false``.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule, or the model has state that examples would enter unprotected.
    """

    task: Task = field(kw_only=False)
    clip_norm: float
    noise_multiplier: float
    expected_batch_size: int = 64
    num_steps: int = 50
    sampling_rate: float | None = None
    delta: float = 1e-5
    optimizer: Annotated[str | optax.GradientTransformation, PluginKind(Kind.OPTIMIZER)] = "sgd(momentum=0.9)"
    learning_rate: float = 0.05
    proximal_mu: float = 0.0
    _plain: Supervised = field(init=False, repr=False)
    _like: dict[str, PyTree] = field(init=False, repr=False)
    _optimizer: optax.GradientTransformation = field(init=False, repr=False)
    _programs: dict[Any, _Program] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier", "learning_rate"):
            check_number(_OWNER, name, getattr(self, name), minimum=0, open_below=True)
        check_number(_OWNER, "proximal_mu", self.proximal_mu, minimum=0)
        for name in ("expected_batch_size", "num_steps"):
            check_int(_OWNER, name, getattr(self, name), minimum=1)
        check_number(_OWNER, "delta", self.delta, minimum=0, maximum=0.5, open_below=True)
        if self.sampling_rate is not None:
            check_number(_OWNER, "sampling_rate", self.sampling_rate, minimum=0, maximum=1, open_below=True)
        plain = Supervised(self.task, optimizer=self.optimizer, learning_rate=self.learning_rate)
        like = jax.eval_shape(self.task.model.init, jax.random.key(0))
        if "batch_stats" in like:
            raise ConfigError(
                f"{_OWNER}: the model of task {self.task.name!r} has batch statistics (BatchNorm), which mix "
                "the examples of a batch and leave the client without noise; use GroupNorm or LayerNorm."
            )
        object.__setattr__(self, "_plain", plain)
        object.__setattr__(self, "_like", like)
        optimizer = named_optimizer(self.optimizer, learning_rate=self.learning_rate)
        object.__setattr__(self, "_optimizer", optimizer)

    @property
    def adjacency(self) -> Literal["add_remove", "zero_out"]:
        """What a neighbouring data set is, see the class."""
        return "zero_out" if self.sampling_rate is None else "add_remove"

    def epsilon(self, num_examples: int, *, num_trainings: int = 1) -> float:
        """Return ε, at :attr:`delta` and per record, of so many calls of :meth:`train` together.

        By Rényi accounting, as it is asked in every round; :meth:`report` finds less.
        """
        return self.report(num_examples, num_trainings=num_trainings, pld=False).epsilon

    def report(self, num_examples: int, *, num_trainings: int = 1, pld: bool = True) -> Report:
        """Return what so many calls of :meth:`train` spend, by the best accounting; PLD takes a second."""
        step = step_release(
            adjacency=self.adjacency,
            sampling_rate=self._rate(num_examples),
            noise_multiplier=float(self.noise_multiplier),
            num_examples=num_examples,
        )
        accountant = Accountant(step.relation)
        accountant.compose(step, self.num_steps * num_trainings)
        return accountant.report(float(self.delta), pld=pld)

    def plan(self, data: Dataset) -> ClippingPlan:
        """Return how the gradients of examples like these are clipped."""
        return self._program(data).plan

    def init(self, *, seed: int) -> NamedArrays:
        """Return freshly initialised parameters; equal seeds give equal bits."""
        return self._plain.init(seed=seed)

    def evaluate(self, arrays: NamedArrays, data: Dataset) -> dict[str, float]:
        """Return ``loss`` and the task's metrics, averaged over the examples: exact, unprotected."""
        return self._plain.evaluate(arrays, data)

    def train(
        self, arrays: NamedArrays, data: Dataset, *, seed: int, random: RandomBits | None = None
    ) -> TrainResult:
        """Return the parameters after ``num_steps`` private steps, starting from ``arrays``.

        Metrics: ``epsilon_record_add_remove`` (or ``..._zero_out``), ``delta``, ``noise_multiplier``,
        ``sampling_rate`` and ``num_steps``, all of this call alone. ``random`` is for tests: what it gives
        must be secret and never used again, or nothing is private.

        Raises
        ------
        DataError
            If there are no examples, or fewer than ``expected_batch_size``.
        StructureError
            If ``arrays`` are not the model's.
        """
        check_not_empty([data])
        rate = self._rate(len(data))
        variables = unflatten_named(arrays, self._like)
        random = SystemRandom() if random is None else random
        capacity = bucket_capacity(len(data), unit=EVALUATION_UNIT)
        x, y, _ = stack_in_bucket([data], [0], slots=1, capacity=capacity)
        program = self._program(data)
        trained = self._run(program, variables, x[0], y[0], random, len(data), rate, seed)
        return TrainResult(
            arrays=flatten_named(trained),
            num_examples=len(data)
            if self.sampling_rate is None
            else max(1, round(self.expected_batch_size / rate)),
            metrics={
                f"epsilon_record_{self.adjacency}": self.epsilon(len(data)),
                "delta": float(self.delta),
                "noise_multiplier": float(self.noise_multiplier),
                "sampling_rate": rate,
                "num_steps": float(self.num_steps),
            },
        )

    def _rate(self, num_examples: int) -> float:
        """Return the probability of an example to be in a batch."""
        if self.sampling_rate is not None:
            return float(self.sampling_rate)
        if num_examples < self.expected_batch_size:
            raise DataError(
                f"{_OWNER}: the client has {num_examples} examples but expected_batch_size="
                f"{self.expected_batch_size}; lower expected_batch_size, or use fewer partitions."
            )
        return self.expected_batch_size / num_examples

    def _program(self, data: Dataset) -> _Program:
        """Return what is compiled for examples like these."""
        x, y = (
            jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
                array.shape[1:], jax.dtypes.canonicalize_dtype(array.dtype)
            )
            for array in (data.x, data.y)
        )
        if (x, y) not in self._programs:
            traced = trace_model(self.task.model, self.task.loss, self._like, x, y)
            plan = _plan(traced, self._like["params"])
            physical = physical_size(self.expected_batch_size)
            if plan.method == "microbatch":
                physical = min(physical, MICROBATCH)
            steps = make_steps(
                traced,
                optimizer=self._optimizer,
                clip_norm=float(self.clip_norm),
                noise_multiplier=float(self.noise_multiplier),
                expected_batch_size=self.expected_batch_size,
                physical_batch_size=physical,
                proximal_mu=float(self.proximal_mu),
            )
            self._programs[x, y] = _Program(plan, jax.jit(steps), physical)
        return self._programs[x, y]

    def _run(
        self,
        program: _Program,
        variables: dict[str, PyTree],
        x: Any,
        y: Any,
        random: RandomBits,
        num_examples: int,
        rate: float,
        seed: int,
    ) -> dict[str, PyTree]:
        """Run all steps, as many at a time as their noise may take memory; return the new variables."""
        anchor = variables["params"]
        state = {name: tree for name, tree in variables.items() if name != "params"}
        num_words = noise_words(anchor)
        ahead = max(1, min(self.num_steps, MAX_AHEAD, WORDS_BYTES // (4 * num_words)))
        key = jax.random.key(seed & 0x7FFFFFFF)
        carry = Carry(anchor, state, jax.jit(self._optimizer.init)(anchor))
        x, y = jax.device_put((x, y))
        for first in range(0, self.num_steps, ahead):
            num_steps = min(ahead, self.num_steps - first)
            batches = draw_batches(random, num_examples=num_examples, sampling_rate=rate, num_steps=num_steps)
            rows, counts = pad_batches(batches, num_slots=ahead, capacity=4 * program.physical_batch_size)
            words = np.empty((ahead, num_words), np.uint32)
            random.fill(words[:num_steps])
            carry = program.steps(
                carry, anchor, x, y, rows, counts, words, np.int32(first), np.int32(num_steps), key
            )
        result: dict[str, PyTree] = {"params": jax.device_get(carry.params), **jax.device_get(carry.state)}
        return result


def _plan(traced: TracedLoss, params: PyTree) -> ClippingPlan:
    """Return how each parameter is clipped, and whether what is materialised asks for microbatches."""
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    names = ["/".join(str(getattr(part, "key", part)) for part in path) for path in paths]
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    how = dict.fromkeys(names, "unused")
    how.update({names[kept.leaf]: "book-kept" for kept in traced.book_kept})
    how.update({names[leaf]: f"materialised: {why}" for leaf, why in traced.materialised.items()})
    total = sum(sizes[leaf] for leaf in traced.materialised)
    if total <= MAX_MATERIALISED:
        return ClippingPlan("ghost", f"{total} numbers per example are materialised", how)
    largest = max(traced.materialised, key=lambda leaf: sizes[leaf])
    reason = (
        f"{total} numbers per example are materialised, most in {names[largest]!r}: "
        f"{traced.materialised[largest]}"
    )
    return ClippingPlan("microbatch", reason, how)
