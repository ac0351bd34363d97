"""One-run audit of a private trainer: canary records through one call of its ``train``.

The model is a linear one whose gradient at record i is a multiple of eᵢ, far beyond any clip norm: each
record has a weight of its own, which only it and the noise move. A fair coin per record says which it is:

==========  ==============  ============================
adjacency   heads           tails
==========  ==============  ============================
add_remove  x = eᵢ          is not there
zero_out    x = eᵢ          x = 0, so its gradient is 0
replace     x = eᵢ          x = −eᵢ
==========  ==============  ============================

The adversary sees the trained parameters. Two further trainings without canaries tell whether the noise
repeats itself, see :mod:`.canaries`.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ..checks import check_int
from ..errors import ContractError
from ..privacy import Adjacency, NeighborRelation, NoiseSource
from ..training import ClientData, Dataset, Model, Task, Trainer
from .canaries import centered, repeats
from .findings import Finding

Floats = NDArray[np.float64]

_STEEP = 1e6
"""Length of a canary's gradient before it is clipped."""


@runtime_checkable
class PrivateTrainer(Trainer, Protocol):
    """What an audit asks of a trainer: δ and adjacency of the ε that it reports as ``epsilon_record_…``."""

    delta: float

    @property
    def adjacency(self) -> str:
        """``"add_remove"``, ``"zero_out"`` or ``"replace"``."""
        ...


def canary_task(num_records: int) -> Task:
    """Return the task whose record i moves weight i alone; its data are made by :func:`audit_trainer`."""

    def init(_: jax.Array) -> dict[str, Any]:
        return {"params": {"w": jnp.zeros(num_records)}}

    def apply(variables: dict[str, Any], x: jax.Array, **_: Any) -> tuple[jax.Array, dict[str, Any]]:
        return x @ variables["params"]["w"], {}

    def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
        return -_STEEP * outputs * y

    def load(_: int, __: int) -> ClientData:
        data = _records(np.eye(num_records, dtype=np.float32))
        return ClientData(data, data.take(np.arange(0)))

    return Task(name="canaries", model=Model(init=init, apply=apply), loss=loss, load_partition=load)


def audit_trainer(trainer: object, *, num_records: int, confidence: float = 0.95) -> Finding:
    """Return what an adversary shows of one training, beside the ε that the trainer reports for it.

    Parameters
    ----------
    trainer : PrivateTrainer
        Built for :func:`canary_task` of ``num_records``.
    num_records : int
        How many canaries there are.
    confidence : float
        With what probability the lower bound is true.

    Raises
    ------
    ContractError
        If the trainer promises nothing for records.
    """
    check_int("audit", "num_records", num_records, minimum=1)
    if not isinstance(trainer, PrivateTrainer):
        raise ContractError(
            f"audit: {type(trainer).__name__} does not say what it promises (adjacency, delta); audit "
            "dp_supervised(…), or a trainer with these."
        )
    relation = NeighborRelation.of(unit="record", adjacency=trainer.adjacency)
    coins = NoiseSource().bernoulli(0.5, num_records)
    canaries = np.eye(num_records, dtype=np.float32)
    if relation.adjacency is Adjacency.ADD_REMOVE:
        # One record of zeros that everybody knows of: without any, there would be nothing to train on.
        data = _records(np.concatenate([canaries[coins], canaries[:1] * 0.0]))
    else:
        tails = 0.0 if relation.adjacency is Adjacency.ZERO_OUT else -1.0
        data = _records(canaries * np.where(coins, 1.0, tails).astype(np.float32)[:, None])
    arrays = trainer.init(seed=0)
    result = trainer.train(arrays, data, seed=0)
    name = f"epsilon_record_{relation.adjacency.value}"
    if name not in result.metrics:
        raise ContractError(f"audit: the trainer reports no metric {name}; it has {sorted(result.metrics)}.")
    (key,) = arrays
    nobody = _records(np.zeros_like(data.x))
    first, second = (_weights(trainer.train(arrays, nobody, seed=0).arrays[key]) for _ in range(2))
    seen = _weights(result.arrays[key])
    if repeats(first, second):
        seen = seen - first
    epsilon = result.metrics[name]
    return Finding.of(
        centered(seen),
        coins,
        relation=relation,
        delta=trainer.delta,
        confidence=confidence,
        accounted=epsilon,
        account=f"ε = {epsilon:.4g} at δ = {trainer.delta:g} ({relation}; as the trainer reports)",
    )


def _records(x: NDArray[np.float32]) -> Dataset:
    """Return records of label 1."""
    return Dataset(x, np.ones(len(x), np.float32))


def _weights(array: NDArray[Any]) -> Floats:
    """Return the weights in float64."""
    return np.asarray(array, dtype=np.float64)
