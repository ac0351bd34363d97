"""What one client does with a train message, whether it has a node of its own or shares one."""

from dataclasses import replace

import numpy as np

from ..records import Layout
from ..seeds import derive_seed
from ..training import Dataset, NamedArrays, SharesIdentity, TrainResult, TrainsVirtualClients
from .config import RunConfig
from .stack import ClientStack, partition


def is_hostile(stack: ClientStack, client: int) -> bool:
    """Whether the client with this partition is one of the attack's."""
    return stack.attack is not None and client < stack.attack.num_byzantine


def train_seed(config: RunConfig, client: int, number: int) -> int:
    """Return the seed of a client's training in round ``number``."""
    return derive_seed(config.seed, "train", client, number)


def train_one(
    config: RunConfig,
    stack: ClientStack,
    received: NamedArrays,
    client: int,
    num_clients: int,
    *,
    number: int,
) -> TrainResult:
    """Return what the client with partition ``client`` of ``num_clients`` sends in round ``number``."""
    if not is_hostile(stack, client):
        data = partition(config, client, num_clients).train
        return stack.trainer.train(received, data, seed=train_seed(config, client, number))
    if isinstance(stack.attack, SharesIdentity):
        client = stack.attack.acts_as(client)
    data = partition(config, client, num_clients).train
    return _train_hostile(stack, received, data, seed=train_seed(config, client, number))


def _train_hostile(stack: ClientStack, received: NamedArrays, data: Dataset, *, seed: int) -> TrainResult:
    """Return what a hostile client sends: received + poisoned update, integer arrays as trained."""
    attack = stack.attack
    assert attack is not None
    keys = Layout.of(received).float_keys
    attack_seed = derive_seed(seed, "attack")
    data = attack.poison_data(data, num_classes=stack.task.num_classes)
    parts = attack.split_data(data, seed=attack_seed) if isinstance(attack, TrainsVirtualClients) else [data]
    results = [stack.trainer.train(received, part, seed=seed) for part in parts]
    updates = [
        {key: np.asarray(result.arrays[key]) - np.asarray(received[key]) for key in keys}
        for result in results
    ]
    if isinstance(attack, TrainsVirtualClients):
        update = attack.combine_updates(updates, seed=attack_seed)
    else:
        (update,) = updates
    poisoned = attack.poison_update(update, seed=attack_seed)
    arrays = {key: (received[key] + poisoned[key]).astype(received[key].dtype) for key in keys}
    return replace(results[0], arrays={**results[0].arrays, **arrays}, num_examples=len(data))
