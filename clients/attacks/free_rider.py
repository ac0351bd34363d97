"""Free-riding: nothing is learned; the last change of the global parameters, or noise, is sent."""

from dataclasses import dataclass, field

import numpy as np

from fl_plugins.errors import ConfigTypeError
from fl_plugins.registry import Kind, register
from fl_plugins.seeds import derive_rng
from fl_plugins.training import Dataset, NamedArrays

from ._checks import check_num_byzantine, check_number


@dataclass
class _Memory:
    """The global parameters of two rounds of one run that differ: the last seen, and those before."""

    number: int = 0
    last: NamedArrays | None = None
    before: NamedArrays | None = None


@register(Kind.ATTACK, "free_rider", paper="Lin et al. 2019, Free-riders in Federated Learning, §3")
@dataclass(frozen=True, kw_only=True)
class FreeRider:
    """Send the last change of the global parameters, which looks like training and cost none.

    It is remembered in the process: where there is no change yet (in the first round, in a process that is
    new, or always where every message is answered by a process of its own), noise N(0, stddev²) is sent
    instead (Fraboni et al. 2021, §3.2). A process that is not asked in every round replays the change since
    it last was.

    Parameters
    ----------
    num_byzantine : int
        Number of hostile clients: the partitions ``0 .. num_byzantine - 1``.
    stddev : float
        Standard deviation of the noise; >= 0, and 0 sends the parameters back as they are.
    replay : bool
        Whether to replay; without, noise is sent in all rounds.

    Raises
    ------
    ConfigError
        If a parameter breaks its rule.
    """

    num_byzantine: int
    stddev: float = 0.001
    replay: bool = True
    _memory: _Memory = field(default_factory=_Memory, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_num_byzantine("free_rider", self.num_byzantine)
        check_number("free_rider", "stddev", self.stddev, minimum=0)
        if not isinstance(self.replay, bool):
            raise ConfigTypeError(f"free_rider: replay={self.replay!r} must be a bool; give True or False.")

    def observe(self, arrays: NamedArrays, *, number: int) -> None:
        """Remember the parameters if they are new; an earlier round or another model begins a new run."""
        memory = self._memory
        if not self.replay:
            return
        last = memory.last
        if last is None or not _same(last, arrays):
            same_run = last is not None and number > memory.number and _same_shapes(last, arrays)
            memory.before = last if same_run else None
            memory.last = {name: np.array(array) for name, array in arrays.items()}
        memory.number = number

    def poison_data(self, data: Dataset, *, num_classes: int | None) -> Dataset:  # noqa: ARG002
        """Return ``data`` itself."""
        return data

    def poison_update(self, update: NamedArrays, *, seed: int) -> NamedArrays:
        """Return the last change in the update's dtypes, or noise; equal seeds give equal noise."""
        last, before = self._memory.last, self._memory.before
        with np.errstate(over="ignore"):
            if last is not None and before is not None:
                return {
                    name: (last[name].astype(np.float64) - before[name].astype(np.float64)).astype(
                        array.dtype
                    )
                    for name, array in update.items()
                }
            return {
                name: np.asarray(
                    derive_rng(seed, "free_rider", name).normal(0.0, self.stddev, array.shape)
                ).astype(array.dtype)
                for name, array in update.items()
            }


def _same_shapes(one: NamedArrays, other: NamedArrays) -> bool:
    """Whether two models have the same arrays but for the values."""
    return {name: array.shape for name, array in one.items()} == {
        name: array.shape for name, array in other.items()
    }


def _same(one: NamedArrays, other: NamedArrays) -> bool:
    """Whether two models are equal, value for value."""
    return _same_shapes(one, other) and all((array == other[name]).all() for name, array in one.items())
