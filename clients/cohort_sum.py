"""The weighted sum of a cohort's updates, added up by the program that trains: no model leaves it.

Stacking m models only to add them up writes and reads each of them several times; here an update is added
while it is in cache. The sum is that of :mod:`fl_plugins.aggregation.streaming`: two float64 per parameter,
so that it does not matter who adds what when.

TwoSum (Knuth, TAOCP vol. 2, §4.2.2) is exact only for terms that are: float32 updates times weights of at
most 29 bits are (24 + 29 = 53), whether or not the compiler fuses the product into the addition.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from fl_plugins.training import Dataset, PyTree

from .cohort import CohortProgram, collect
from .mapping import Mapping


def sum_clients(function: Callable[..., tuple[PyTree, PyTree]]) -> Callable[..., PyTree]:
    """Return ``summed(shared, num_clients, *rows, weights)`` of ``function(shared, *row) -> (new, told)``.

    ``shared`` and ``new`` are one tree of float32; the update is ``new − shared``. Results: ``high`` and
    ``low`` of Σ weight · update over the finite updates, with a first axis of length 1; and per slot ``told``
    and, for each leaf, whether it was finite. To be traced with 64-bit types; ``function`` is traced without.
    """

    def summed(shared: PyTree, num_clients: jax.Array, *rows: jax.Array) -> PyTree:
        *inputs, weights = rows
        with jax.enable_x64(False):
            like = jax.eval_shape(lambda *rows: [row[0] for row in rows], *inputs)
            closed, shapes = jax.make_jaxpr(function, return_shape=True)(shared, *like)
        structure = jax.tree.structure(shapes)

        def run(slot: jax.Array) -> tuple[PyTree, PyTree]:
            row = (lax.dynamic_index_in_dim(values, slot, keepdims=False) for values in inputs)
            flat = jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *jax.tree.leaves(shared), *row)
            new, told = jax.tree.unflatten(structure, flat)
            return new, told

        def step(slot: jax.Array, carry: PyTree) -> PyTree:
            high, low, told, finite = carry
            # The barrier keeps training the same program here and where models are returned.
            new, said = lax.optimization_barrier(run(slot))  # type: ignore[no-untyped-call]
            updates = jax.tree.map(jnp.subtract, new, shared)
            fine = jnp.stack(
                [
                    jnp.all(jnp.isfinite(update) & jnp.isfinite(value))
                    for update, value in zip(jax.tree.leaves(updates), jax.tree.leaves(new), strict=True)
                ]
            )
            used = jnp.all(fine)
            weight = lax.dynamic_index_in_dim(weights, slot, keepdims=False)

            def add(update: jax.Array, high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
                term = jnp.where(used, update, 0).astype(jnp.float64) * weight
                total = high + term
                added = total - high
                return total, low + ((term - added) + (high - (total - added)))

            sums = jax.tree.map(add, updates, high, low)
            high, low = jax.tree.transpose(jax.tree.structure(shared), jax.tree.structure((0, 0)), sums)
            return high, low, _put(told, said, slot), finite.at[slot].set(fine)

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float64), shared)
        slots = rows[0].shape[0]
        empty = jax.tree.map(lambda leaf: jnp.zeros((slots, *leaf.shape), leaf.dtype), shapes[1])
        finite = jnp.zeros((slots, len(jax.tree.leaves(shared))), bool)
        high, low, told, finite = lax.fori_loop(0, num_clients[0], step, (zeros, zeros, empty, finite))
        high, low = jax.tree.map(lambda leaf: leaf[None], (high, low))
        return high, low, told, finite

    return summed


def _put(stacked: PyTree, result: PyTree, slot: jax.Array) -> PyTree:
    """Write one slot's result."""
    return jax.tree.map(
        lambda slots, one: lax.dynamic_update_index_in_dim(slots, one, slot, 0), stacked, result
    )


@dataclass(eq=False, kw_only=True)
class CohortSumProgram(CohortProgram):
    """As :class:`clients.cohort.CohortProgram`, of :func:`sum_clients`; clients are always looped over."""

    @property
    def loops(self) -> bool:
        """Whether clients are looped over: elsewhere than on a CPU it may be better not to."""
        return self.mapping == "loop" or (self.mapping == "auto" and self.devices[0].platform == "cpu")

    def _mapped(self, mapping: Mapping) -> Callable[..., PyTree]:  # noqa: ARG002
        return sum_clients(self.function)

    def _call(self, program: Any, *arguments: Any) -> PyTree:
        with jax.enable_x64(True):
            return program(*arguments)

    def sum(
        self,
        shared: PyTree,
        datasets: Sequence[Dataset],
        *extra: NDArray[Any],
        weights: NDArray[np.float64],
    ) -> tuple[list[tuple[PyTree, PyTree]], PyTree, NDArray[np.bool_]]:
        """Return ``(high, low)`` of each part, ``told`` of all clients, and which leaves are finite.

        Weights have at most 29 significant bits. What is returned last is ``(m, leaves)``.
        """
        parts: list[tuple[PyTree, PyTree]] = []
        told: PyTree = None
        for block, (high, low, *said) in self._run("loop", shared, datasets, [*extra, weights]):
            told = collect(block, tuple(said), into=told, num_clients=len(datasets))
            high, low = jax.device_get((high, low))
            for device in range(len(block.counts)):
                part = jax.tree.map(lambda leaf, device=device: leaf[device], (high, low))
                parts.append(part)
        return parts, told[0], told[1]
