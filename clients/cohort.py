"""Many clients in one XLA program: their data stacked, the clients looped over or batched.

A *cohort* of m clients is dealt into *blocks*. A block is one call of one compiled program: arrays with a
fixed number of slots on their first axis, of which the first ``num_clients`` (traced) are real. So m may be
another one every round and nothing is compiled again. There are two ways to run a block:

- *loop*: client after client, in a ``fori_loop`` whose trip count is ``num_clients``. An empty slot costs no
  arithmetic, and a client's bits do not depend on who shares its block.
- *vmap*: all slots at once. Empty slots are computed and thrown away, every client takes as many masked
  steps as the largest, and batched products sum in another order: equal to the loop to rounding only.

Clients in different buckets (:mod:`clients.buckets`) go to different blocks, so that one large client does
not pad the small ones. With several local devices a block's slots are sharded over them; the devices never
wait for each other within a block. The host stacks a block while the devices compute the one before.

Nothing is donated: no input has an output's shape. Loops update their carries in place anyway.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from numpy.typing import NDArray

from fl_plugins.training import Dataset, PyTree

from .buckets import bucket_capacity, stack_in_bucket
from .mapping import Mapping, choose_mapping

SLOTS: dict[Mapping, tuple[int, ...]] = {"loop": (1, 16), "vmap": (4, 16, 64)}
"""Sizes of blocks, per device. A loop's empty slots are nearly free: two sizes (two programs) suffice."""

PROBED_CLIENTS = 16
"""Clients in the block on which :func:`clients.mapping.choose_mapping` tries both ways; in all SLOTS."""

PROBED_STEPS = 2
"""Batches that each of them is tried on."""


def map_clients(function: Callable[..., PyTree], *, mapping: Mapping) -> Callable[..., PyTree]:
    """Return ``mapped(shared, num_clients, *rows)``: ``function(shared, *row)`` for the first rows, stacked.

    ``rows`` have the slots as first axis, ``num_clients`` is int32 ``(1,)``. A loop leaves the results of
    empty slots zero; ``vmap`` leaves there whatever it computed.
    """

    def looped(shared: PyTree, num_clients: jax.Array, *rows: jax.Array) -> PyTree:
        def run(slot: jax.Array) -> PyTree:
            return function(shared, *(lax.dynamic_index_in_dim(row, slot, keepdims=False) for row in rows))

        def step(slot: jax.Array, stacked: PyTree) -> PyTree:
            return jax.tree.map(
                lambda slots, result: lax.dynamic_update_index_in_dim(slots, result, slot, 0),
                stacked,
                run(slot),
            )

        empty = jax.tree.map(
            lambda leaf: jnp.zeros((rows[0].shape[0], *leaf.shape), leaf.dtype),
            jax.eval_shape(run, num_clients[0]),
        )
        return lax.fori_loop(0, num_clients[0], step, empty)

    def batched(shared: PyTree, num_clients: jax.Array, *rows: jax.Array) -> PyTree:  # noqa: ARG001
        return jax.vmap(function, in_axes=(None, *(0 for _ in rows)))(shared, *rows)

    return looped if mapping == "loop" else batched


@dataclass(frozen=True, kw_only=True)
class Block:
    """Which clients run together: ``clients[i]`` has slot ``positions[i]`` of ``slots``."""

    clients: list[int]
    positions: list[int]
    slots: int
    capacity: int
    counts: NDArray[np.int32]
    """Clients on each device."""


def deal_blocks(
    datasets: Sequence[Dataset], *, unit: int, sizes: Sequence[int], num_devices: int
) -> Iterator[Block]:
    """Deal clients of one bucket and shape into blocks of ``sizes`` (ascending) slots per device.

    The largest size is filled as often as possible, and the rest gets the smallest that holds it. Over
    several devices clients are dealt by size, the largest first, so that all have about as much to do.
    """
    groups: dict[Any, list[int]] = defaultdict(list)
    for client, data in enumerate(datasets):
        kind = data.x.shape[1:], data.x.dtype, data.y.shape[1:], data.y.dtype
        groups[bucket_capacity(len(data), unit=unit), kind].append(client)
    for (capacity, _), members in groups.items():
        if num_devices > 1:
            members = sorted(members, key=lambda client: -len(datasets[client]))
        while members:
            slots = next((size for size in sizes if size * num_devices >= len(members)), sizes[-1])
            devices = 1 if len(members) == 1 and slots == 1 else num_devices
            taken, members = members[: slots * devices], members[slots * devices :]
            yield Block(
                clients=taken,
                positions=[i % devices * slots + i // devices for i in range(len(taken))],
                slots=slots * devices,
                capacity=capacity,
                counts=np.array([len(range(d, len(taken), devices)) for d in range(devices)], np.int32),
            )


@dataclass(eq=False, kw_only=True)
class CohortProgram:
    """``function(shared, x, y, num_examples, *extra)`` of one client, compiled for cohorts of any size.

    Parameters
    ----------
    function : Callable
        Pure; ``x`` and ``y`` are padded to a bucket of which ``num_examples`` are real.
    unit : int
        The smallest bucket.
    mapping : {"auto", "loop", "vmap"}
        See the module's docstring and :func:`clients.mapping.choose_mapping`.
    """

    function: Callable[..., PyTree]
    unit: int
    mapping: Literal["auto", "loop", "vmap"] = "auto"
    _chosen: Mapping | None = field(default=None, init=False)

    @cached_property
    def devices(self) -> list[jax.Device]:
        """The devices over which clients are sharded: all local ones, unless JAX was told a default."""
        default: Any = jax.config.jax_default_device  # type: ignore[attr-defined]
        devices: list[jax.Device] = jax.local_devices()
        return devices if default is None else devices[:1]

    @cached_property
    def programs(self) -> dict[tuple[Mapping, bool], Any]:
        """The jitted program for each mapping, on one device and sharded over all; compiled when called."""
        mesh = Mesh(np.array(self.devices), ("clients",))
        programs: dict[tuple[Mapping, bool], Any] = {}
        for mapping in SLOTS:
            mapped = self._mapped(mapping)
            programs[mapping, False] = jax.jit(mapped)

            def sharded(shared: PyTree, *rows: jax.Array, mapped: Any = mapped) -> PyTree:
                make: Any = PartitionSpec
                along, everywhere = make("clients"), make()
                specs = (everywhere, *(along for _ in rows))
                # The varying-axes check asks that loop carries start out varying; zeros do not.
                shard = jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=along, check_vma=False)
                return shard(shared, *rows)

            programs[mapping, True] = jax.jit(sharded)
        return programs

    def _mapped(self, mapping: Mapping) -> Callable[..., PyTree]:
        """Return the function of a block that is compiled; its results have slots or devices first."""
        return map_clients(self.function, mapping=mapping)

    @property
    def num_compiled(self) -> int:
        """How many programs were compiled, or loaded from the persistent cache, so far."""
        return sum(program._cache_size() for program in self.programs.values())

    def __call__(self, shared: PyTree, datasets: Sequence[Dataset], *extra: NDArray[Any]) -> PyTree:
        """Return the results stacked over clients, ``(m, ...)``, as NumPy arrays; m >= 1, no set empty.

        ``extra`` are further arguments of ``function``, ``(m, ...)`` each.
        """
        stacked: PyTree = None
        for block, results in self._run(self._mapping(shared, datasets, extra), shared, datasets, extra):
            stacked = collect(block, results, into=stacked, num_clients=len(datasets))
        return stacked

    def _run(
        self, mapping: Mapping, shared: PyTree, datasets: Sequence[Dataset], extra: Sequence[NDArray[Any]]
    ) -> Iterator[tuple[Block, PyTree]]:
        """Yield every block with its results, which may be under way; the next block was then started."""
        blocks = deal_blocks(datasets, unit=self.unit, sizes=SLOTS[mapping], num_devices=len(self.devices))
        running: tuple[Block, PyTree] | None = None
        for block in blocks:
            started = block, self._start(mapping, block, shared, datasets, extra)
            if running is not None:
                yield running
            running = started
        assert running is not None
        yield running

    def _start(
        self,
        mapping: Mapping,
        block: Block,
        shared: PyTree,
        datasets: Sequence[Dataset],
        extra: Sequence[NDArray[Any]],
        *,
        max_examples: int | None = None,
    ) -> PyTree:
        """Stack a block's data and start its program; the result may still be under way."""
        x, y, num_examples = stack_in_bucket(
            [datasets[client] for client in block.clients],
            block.positions,
            slots=block.slots,
            capacity=block.capacity,
        )
        rows = [np.zeros((block.slots, *array.shape[1:]), array.dtype) for array in extra]
        for row, array in zip(rows, extra, strict=True):
            row[block.positions] = array[block.clients]
        program = self.programs[mapping, len(block.counts) > 1]
        if max_examples is not None:
            num_examples = np.minimum(num_examples, max_examples)
        return self._call(program, shared, block.counts, x, y, num_examples, *rows)

    def _call(self, program: Any, *arguments: Any) -> PyTree:
        """Call a jitted program."""
        return program(*arguments)

    def _mapping(self, shared: PyTree, datasets: Sequence[Dataset], extra: Sequence[NDArray[Any]]) -> Mapping:
        """Return the configured mapping, or the one chosen at the first cohort of this process."""
        if self.mapping != "auto":
            return self.mapping
        if self._chosen is None:
            if len(datasets) == 1:
                return "loop"
            (block, *_) = deal_blocks(
                datasets[:PROBED_CLIENTS], unit=self.unit, sizes=[PROBED_CLIENTS], num_devices=1
            )

            def run(mapping: Mapping) -> None:
                limit = PROBED_STEPS * self.unit
                results = self._start(mapping, block, shared, datasets, extra, max_examples=limit)
                for leaf in jax.tree.leaves(results):
                    leaf.block_until_ready()

            self._chosen = choose_mapping(run, platform=self.devices[0].platform)
        return self._chosen


def collect(block: Block, results: PyTree, *, into: PyTree, num_clients: int) -> PyTree:
    """Wait for a block's results and write them to their clients' rows of ``into`` (made if ``None``)."""
    results = jax.device_get(results)
    if block.clients == list(range(num_clients)) and block.positions == block.clients:
        return jax.tree.map(lambda slots: slots[:num_clients], results)
    if into is None:
        into = jax.tree.map(lambda slots: np.empty((num_clients, *slots.shape[1:]), slots.dtype), results)

    def write(rows: NDArray[Any], slots: NDArray[Any]) -> NDArray[Any]:
        rows[block.clients] = slots[block.positions]
        return rows

    return jax.tree.map(write, into, results)
