"""Replies of a linear rule, folded into one sum as they arrive: O(d) memory, whatever the cohort."""

import math
from dataclasses import replace
from typing import Protocol

import numpy as np

from fl_plugins.aggregation.streaming import WeightedSum
from fl_plugins.records import Layout, UpdateRows
from fl_plugins.training import NamedArrays
from fl_plugins.wire import NUM_EXAMPLES

from .options import Settings
from .replies import ClientReply

_BATCH_BYTES = 32 << 20
_BATCH_REPLIES = 256
"""Replies are kept until there are so many, and then folded by all cores at once."""


class Folds(Protocol):
    """What takes up accepted replies as they arrive, so that they need not be kept."""

    def add(self, reply: ClientReply) -> ClientReply:
        """Take up one client's reply; return what is kept of it."""
        ...

    def merge(self, total: WeightedSum) -> None:
        """Take up a cohort node's own sum."""
        ...


class Fold:
    """The sum of the accepted updates so far; a reply's float arrays are dropped when they are in it.

    Parameters
    ----------
    layout, base
        The model, and the parameters that the clients started from.
    weighted : bool
        Whether an update counts by its client's number of examples, or 1.
    size : int
        Number of clients that may reply. Weights are scaled down by a power of two that is more than all of
        them together, which is exact, so that float64 models do not overflow.
    settings : Settings
        The strategy's.
    """

    def __init__(
        self, layout: Layout, base: NamedArrays, *, weighted: bool, size: int, settings: Settings
    ) -> None:
        self._layout, self._base, self._weighted = layout, base, weighted
        most = float(settings.max_num_examples if weighted else 1) * max(size, 1)
        self._scale = math.ldexp(1.0, -math.frexp(most)[1])
        self._total = WeightedSum.zeros(layout.size)
        self._pending: list[NamedArrays] = []
        self._weights: list[float] = []
        self._bytes = 0

    def add(self, reply: ClientReply) -> ClientReply:
        """Take a reply's update into the sum; return the reply without the float arrays."""
        self._pending.append(reply.arrays)
        self._weights.append(self._weight(reply) * self._scale)
        self._bytes += sum(values.nbytes for values in reply.arrays.values())
        if self._bytes >= _BATCH_BYTES or len(self._pending) >= _BATCH_REPLIES:
            self._flush()
        # A copy: the view would keep the whole record that it came in.
        kept = {key: reply.arrays[key].copy() for key in self._layout.other_keys}
        return replace(reply, arrays=kept)

    def merge(self, total: WeightedSum) -> None:
        """Take a node's own sum of weighted updates into the sum."""
        self._total.merge(total, scale=self._scale)

    def finish(self) -> tuple[WeightedSum, float]:
        """Return the sum, and the power of two that its weights have been multiplied by."""
        self._flush()
        return self._total, self._scale

    def _weight(self, reply: ClientReply) -> float:
        """Return how much a reply counts."""
        return reply.num_examples if self._weighted and reply.num_examples is not None else 1.0

    def _flush(self) -> None:
        """Add what is pending."""
        if self._pending:
            rows = UpdateRows(self._layout, self._base, self._pending)
            self._total.add_rows(rows, np.array(self._weights))
        self._pending, self._weights, self._bytes = [], [], 0


def nodes_may_sum(layout: Layout, settings: Settings, *, weighted: bool) -> bool:
    """Whether nodes can fold for themselves: integers are not summed, and nodes know no other weights."""
    return not layout.other_keys and (not weighted or settings.weighted_by_key == NUM_EXAMPLES)
