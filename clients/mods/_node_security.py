"""What this node's operator demands of secure rounds: from its own config and policy, never a message's.

Keys of the node's own config (``--node-config``), all optional:

=====================  =====================================================================================
``policy``             a policy file (:mod:`fl_plugins.node_policy`): its ``roster``, ``min_cohort`` and
                       ``[layers.secure_aggregation]`` count here
``secagg-roster``      file with the public identities of all nodes, instead of the policy's
``secagg-identity``    file with this node's own private key (Ed25519, PEM)
``secagg-tier``        ``"malicious"``: take part in no other rounds
``secagg-state``       folder for what must be answered once (:mod:`clients.mods._answered`)
``secagg-min-clients`` fewest clients that this node lets itself be summed with, or opens as a helper; 3
``secagg-role``        ``"helper"``: this node helps others (:mod:`clients.mods.additive_aggregation`)
``secagg-helpers``     file with the public identities of all helpers, for their clients
``secagg-sum-key``     file with the clients' secret key (:mod:`clients.mods.ckks_aggregation`)
=====================  =====================================================================================

A node that has a roster takes part in malicious-tier rounds only: who lists the peers does not want others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fl_plugins.additive_round import LAYER as ADDITIVE
from fl_plugins.apps.layers import node_policy
from fl_plugins.errors import ConfigError
from fl_plugins.secagg import ClientPolicy, Identity, Tier
from fl_plugins.secure_identities import read_identity, read_roster
from fl_plugins.secure_round import DISTRIBUTED, LAYER

ROSTER = "secagg-roster"
HELPERS = "secagg-helpers"
IDENTITY = "secagg-identity"
TIER = "secagg-tier"
MIN_CLIENTS = "secagg-min-clients"

LEAST_CLIENTS = 3
"""A sum of two shows each the other's update."""


@dataclass(frozen=True, kw_only=True)
class NodeSecurity:
    """A node's policy for secure rounds, and its identity."""

    policy: ClientPolicy
    identity: Identity | None = field(default=None, repr=False)

    @classmethod
    def of(cls, node_config: Mapping[str, Any], *, peers: str = ROSTER) -> Self:
        """Read the node's own config.

        ``peers`` is the key of the roster of those whose keys this node is given.

        Raises
        ------
        ConfigError
            If something in it cannot be read: such a node takes part in nothing.
        """
        policy = node_policy(node_config)
        layers = (LAYER, DISTRIBUTED, ADDITIVE)
        demands = [] if policy is None else [policy.layers.get(name, {}) for name in layers]
        nodes_file = node_config.get(ROSTER) or (None if policy is None else policy.roster)
        roster_file = nodes_file if peers == ROSTER else node_config.get(peers)
        roster = (
            read_roster(Path(str(roster_file)), at_least=1 if peers == HELPERS else 2) if roster_file else {}
        )
        identity_file = node_config.get(IDENTITY)
        demanded = {str(demand.get("tier", "")) for demand in demands}
        tiers = {str(node_config.get(TIER, Tier.HONEST_BUT_CURIOUS)), *demanded} - {""}
        unknown = tiers - {tier.value for tier in Tier}
        if unknown:
            raise ConfigError(
                f"node config: {TIER}={unknown.pop()!r}, but it is one of {[tier.value for tier in Tier]}."
            )
        malicious = bool(nodes_file or roster) or Tier.MALICIOUS in tiers
        least = [
            _least(node_config.get(MIN_CLIENTS, LEAST_CLIENTS)),
            1 if policy is None else policy.min_cohort,
        ]
        return cls(
            policy=ClientPolicy(
                required_tier=Tier.MALICIOUS if malicious else Tier.HONEST_BUT_CURIOUS,
                min_clients=max(least),
                roster=frozenset(roster.values()),
            ),
            identity=read_identity(Path(str(identity_file))) if identity_file else None,
        )


def _least(value: object) -> int:
    """Return the node's own least number of clients."""
    if type(value) is not int or value < 2:
        raise ConfigError(f"node config: {MIN_CLIENTS}={value!r}, but it is a whole number >= 2.")
    return value
