"""What a simulated node is in secure rounds: Flower gives all of them one config, so the run says it.

A deployed node has a config of its own, and what it is, no run may say: there the same keys are an error.
"""

from collections.abc import Mapping
from typing import Any

from flwr.app import Context

from .. import wire
from .._flower_engine import in_actor
from ..additive_round import HELPER, ROLE
from ..ckks_round import KEY
from ..errors import ConfigError
from .config import RunConfig, partition_of

SIMULATED_HELPERS, SIMULATED_SUM_KEY = "simulated-helpers", "simulated-sum-key"


def own_config(context: Context) -> Mapping[str, Any]:
    """Return a node's own config; a simulated one's with the role and the key that the run gives it.

    The last ``simulated-helpers`` partitions are helpers.

    Raises
    ------
    ConfigError
        If the run gives a deployed node a role or a key.
    """
    run, own = RunConfig.from_run_config(context.run_config), context.node_config
    given: dict[str, Any] = {}
    if run.simulated_sum_key:
        given[KEY] = run.simulated_sum_key
    if run.simulated_helpers:
        partition_id, num_partitions = partition_of(own)
        given[ROLE] = HELPER if partition_id >= num_partitions - run.simulated_helpers else "client"
    if given and not in_actor():
        key = SIMULATED_HELPERS if run.simulated_helpers else SIMULATED_SUM_KEY
        raise ConfigError(
            f"run config: {key} is given, but this node is not simulated: its operator says what it is, with "
            f"{' and '.join(given)} in its own config (--node-config); leave it out."
        )
    return {**own, **given}


def data_of(context: Context) -> tuple[int, int]:
    """Return this node's partition and among how many nodes data are dealt: simulated helpers have none.

    Raises
    ------
    ConfigError
        If it is a helper, which no strategy but ``additive_aggregation`` has.
    """
    partition_id, num_partitions = partition_of(context.node_config)
    helpers = RunConfig.from_run_config(context.run_config).simulated_helpers
    if not helpers:
        return partition_id, num_partitions
    if own_config(context)[ROLE] == HELPER:
        raise ConfigError(
            f"run config: {SIMULATED_HELPERS}={helpers}, so the node with {wire.PARTITION_ID}={partition_id} "
            f"of {num_partitions} is a helper and has no data; run additive_aggregation, or leave it out."
        )
    return partition_id, num_partitions - helpers
