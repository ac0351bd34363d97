"""Updates clipped one by one and summed as they arrive: what noise is then added to.

=====  ==================================================================================
Δᵢ     ``(d,)`` float64: all trained float arrays of client i, reply − global, by name
C      the clip norm of this round
wᵢ     1, or min(claimed examples / max_examples, 1): at most 1, whatever is claimed
sum    Σ wᵢ·Δᵢ·min(1, C/‖Δᵢ‖): one client moves it by at most C
bits   Σ (½ if ‖Δᵢ‖ ≤ C, else −½): one client moves it by ½
vᵢ     the metrics that are released, see :mod:`.dp_metrics`; summed too
=====  ==================================================================================

A client that does not answer, or whose reply is refused, adds nothing to either. The sum is kept with its
rounding errors: a plain float64 sum moves by more than one term when a term is added (Casacuberta et al.
2022).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fl_plugins.aggregation.streaming import WeightedSum
from fl_plugins.clipped_updates import ClippedUpdates
from fl_plugins.errors import ContractError
from fl_plugins.records import Layout
from fl_plugins.training import NamedArrays

from .dp_metrics import NoisedMetrics
from .replies import ClientReply


class ClippedSum:
    """The sum of clipped updates and of centred bits; takes replies as :class:`.folding.Fold` does.

    Parameters
    ----------
    layout, base
        The model, and the parameters that the clients started from.
    keys : Sequence[str]
        The float arrays that count, see :func:`fl_plugins.clipped_updates.trained_keys`.
    clip_norm : float
        C.
    per_layer : bool
        Clip each of the L arrays to C/√L instead of the whole to C.
    max_examples : int, optional
        With it, clients count by their claimed number of examples, at most as one that claims so many.
    metrics : NoisedMetrics, optional
        The metrics to sum.

    Guarantees
    ----------
    - ‖any one client's part‖ ≤ ``clip_norm``, in float64, for every reply; a zero update stays zero.
    - O(d) memory. The sum depends neither on the order of replies nor on those that were refused.
    """

    def __init__(
        self,
        layout: Layout,
        base: NamedArrays,
        *,
        keys: Sequence[str],
        clip_norm: float,
        per_layer: bool = False,
        max_examples: int | None = None,
        metrics: NoisedMetrics | None = None,
    ) -> None:
        self._updates = ClippedUpdates(layout, base, keys, clip_norm=clip_norm, per_layer=per_layer)
        self._clip_norm, self._max_examples = clip_norm, max_examples
        self._shapes = {key: base[key].shape for key in keys}
        self._totals = {key: WeightedSum.zeros(base[key].size) for key in keys}
        self._metrics = metrics
        self._metric_total = WeightedSum.zeros(0 if metrics is None else len(metrics.names))
        self.bits = 0.0
        self.weights: dict[str, float] = {}

    @property
    def total(self) -> dict[str, NDArray[np.float64]]:
        """The sum, by key."""
        return {
            key: (total.high + total.low).reshape(self._shapes[key]) for key, total in self._totals.items()
        }

    @property
    def metric_total(self) -> NDArray[np.float64]:
        """The sum of the metrics: ``(J,)``."""
        return self._metric_total.high + self._metric_total.low

    def add(self, reply: ClientReply) -> ClientReply:
        """Add a reply's clipped update; return the reply without arrays."""
        clipped = self._updates.read(reply.arrays)
        weight = self._weight(reply)
        if clipped.finite:
            for key, values in clipped.arrays.items():
                flat = values.reshape(1, -1)
                self._totals[key].add_block(slice(0, flat.size), flat, np.array([weight]))
            self.bits += 0.5 if clipped.norm <= self._clip_norm else -0.5
            if self._metrics is not None:
                values = self._metrics.contribution(reply.metrics).reshape(1, -1)
                self._metric_total.add_block(slice(0, values.size), values, np.ones(1))
        self.weights[reply.client] = weight
        return replace(reply, arrays={})

    def merge(self, total: WeightedSum) -> None:
        """Refuse a node's own sum: what single clients changed in it cannot be bounded any more.

        Raises
        ------
        ContractError
            Always.
        """
        raise ContractError(
            f"clipped sum: a cohort node sent a {type(total).__name__}, but every client's update must be "
            "clipped by itself; ask for every client's parameters."
        )

    def _weight(self, reply: ClientReply) -> float:
        """Return how much a reply counts: a number in (0, 1] that no claim exceeds."""
        if self._max_examples is None or reply.num_examples is None:
            return 1.0
        return min(reply.num_examples / self._max_examples, 1.0)
