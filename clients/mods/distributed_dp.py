"""The client's part of distributed differential privacy: clip, add a share of the noise, then mask.

Everything but the encoding is :mod:`clients.mods.secure_aggregation`. The node computes scale and noise from
the announced public settings, refuses those that no noise is accounted for, and is asked for no metric.

A node with ``privacy-ledger`` or ``max-epsilon`` in its own config (:mod:`fl_plugins.node_account`) charges
every attempt to an account of its own, which no server can reset: for adjacency ``replace``, whatever is
announced, and whether the attempt gives a sum or not.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from flwr.app import ConfigRecord, Context, Message
from numpy.typing import NDArray

from fl_plugins.distributed_privacy import DistributedSettings
from fl_plugins.local_privacy import LOCAL
from fl_plugins.node_account import LEDGER, MAX_EPSILON, NodeAccount
from fl_plugins.records import Layout
from fl_plugins.registry import Kind, register
from fl_plugins.secagg import RoundParameters
from fl_plugins.secagg.distributed_noise import EncodedShare
from fl_plugins.secure_round import DISTRIBUTED

from .secure_aggregation import SecureAggregation

logger = logging.getLogger("flwr.fl_plugins")

_CHARGED = "fl-plugins.distributed-dp"
"""Record in the node's state: the attempts of this run that were charged, and the last one's reservation."""


@register(
    Kind.MOD,
    DISTRIBUTED,
    paper="Kairouz, Liu & Steinke 2021, The Distributed Discrete Gaussian Mechanism; Agarwal et al. 2021",
)
@dataclass(frozen=True, kw_only=True)
class DistributedDp(DistributedSettings, SecureAggregation):
    """Answer secure rounds with vectors that hold a share of the noise.

    Guarantees
    ----------
    - The vector that is masked is the clipped and rounded update with a share of noise from the operating
      system, sized for ``min_clients`` without ``corrupt`` of the largest cohort; the node unmasks no sum of
      fewer.
    - An update that is not finite counts as zero, with its noise. A node whose app fails drops out, which is
      seen: that it could not train is not covered by ε.
    """

    def _before_training(self, context: Context, layout: Layout) -> None:
        """Charge this attempt to the node's own account, if it keeps one.

        Raises
        ------
        BudgetError
            If the node's own limit would be exceeded.
        """
        if not {LEDGER, MAX_EPSILON} & context.node_config.keys():
            return
        release = replace(self.release(layout.size), relation=LOCAL)
        record = context.state.config_records.get(_CHARGED, ConfigRecord({"attempts": 0}))
        number = int(record["attempts"]) + 1  # type: ignore[arg-type]
        reservation = NodeAccount(context).charge(release, number)
        context.state[_CHARGED] = ConfigRecord({"attempts": number, "reservation": reservation})

    def _vector_leaves(self, context: Context) -> None:
        """Note in the node's own account that what was charged has left."""
        record = context.state.config_records.get(_CHARGED)
        if record is not None:
            NodeAccount(context).commit(int(record["reservation"]))  # type: ignore[arg-type]

    def _words(
        self,
        trained: Message,  # noqa: ARG002  weights and metrics would be released without noise
        entries: Iterator[NDArray[Any]],
        layout: Layout,
        parameters: RoundParameters,
    ) -> EncodedShare:
        """Return the noisy update as ring words."""
        share = self.encoding(parameters, layout).encode(entries)
        if not share.norm <= self.clip_norm:
            logger.info("distributed dp: an update of norm %g, clipped to %g", share.norm, self.clip_norm)
        return share
