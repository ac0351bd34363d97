"""The client's part of distributed differential privacy: clip, add a share of the noise, then mask.

Everything but the encoding is :mod:`clients.mods.secure_aggregation`. The node computes scale and noise from
the announced public settings, refuses those that no noise is accounted for, and is asked for no metric.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flwr.app import Message
from numpy.typing import NDArray

from fl_plugins.distributed_privacy import DistributedSettings
from fl_plugins.records import Layout
from fl_plugins.registry import Kind, register
from fl_plugins.secagg import RoundParameters
from fl_plugins.secagg.distributed_noise import EncodedShare
from fl_plugins.secure_round import DISTRIBUTED

from .secure_aggregation import SecureAggregation

logger = logging.getLogger("flwr.fl_plugins")


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

    def _words(
        self,
        trained: Message,  # noqa: ARG002  weights and metrics would be released without noise
        update: Iterator[NDArray[Any]],
        layout: Layout,
        parameters: RoundParameters,
    ) -> EncodedShare:
        """Return the noisy update as ring words."""
        share = self.encoding(parameters, layout).encode(update)
        if not share.norm <= self.clip_norm:
            logger.info("distributed dp: an update of norm %g, clipped to %g", share.norm, self.clip_norm)
        return share
