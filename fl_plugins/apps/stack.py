"""Build the plugins that a run config names: at the server, and once per process at a client."""

from dataclasses import dataclass
from functools import lru_cache

from ..errors import ContractError
from ..registry import Kind, load_modules
from ..spec import build
from ..training import Attack, ClientData, Task, Trainer
from ._partition_cache import PartitionCache
from .config import RunConfig

_PARTITION_BYTES = 256 << 20
"""Bytes of partitions that one process keeps: MNIST's 60,000 images as float32, dealt to 10,000 clients,
are a fifth of it."""

_partitions = PartitionCache(_PARTITION_BYTES)


@dataclass(frozen=True)
class ClientStack:
    """What one client process needs to serve messages."""

    task: Task
    trainer: Trainer
    attack: Attack | None


def client_stack(config: RunConfig) -> ClientStack:
    """Return task, trainer and attack of ``config``; built once per process, so that nothing recompiles."""
    return _client_stack(config.plugins, config.task, config.client, config.attack)


@lru_cache(maxsize=8)
def _client_stack(plugins: str, task_spec: str, client_spec: str, attack_spec: str) -> ClientStack:
    task = _task(plugins, task_spec)
    trainer = build(Kind.CLIENT, client_spec, task=task)
    if not isinstance(trainer, Trainer):
        raise ContractError(
            f"{client_spec}: made a {type(trainer).__name__}, but a fl_plugins Trainer is needed."
        )
    attack = build(Kind.ATTACK, attack_spec) if attack_spec.strip() else None
    return ClientStack(task, trainer, attack)


@lru_cache(maxsize=8)
def _task(plugins: str, task_spec: str) -> Task:
    load_modules(plugins)
    task = build(Kind.TASK, task_spec)
    if not isinstance(task, Task):
        raise ContractError(f"{task_spec}: made a {type(task).__name__}, but a fl_plugins Task is needed.")
    return task


def partition(config: RunConfig, partition_id: int, num_partitions: int) -> ClientData:
    """Return one client's data; kept in this process, so that they are not loaded anew every round."""
    task = (config.plugins, config.task)
    return _partitions.get(
        (*task, partition_id, num_partitions),
        lambda: _task(*task).load_partition(partition_id, num_partitions),
    )
