"""The run config of the ready-made app, as one checked dataclass.

A run-config key is the field's name with hyphens. Flower accepts an override only for keys that the app's
``pyproject.toml`` declares; :meth:`RunConfig.defaults` is what stands there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .. import wire
from ..checks import check_int, check_number
from ..errors import ConfigError, ConfigTypeError

RunConfigValue = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What to run.

    Parameters
    ----------
    strategy, client, task : str
        Specs of plugins, for example ``"krum(num_byzantine=2)"``.
    attack : str
        Spec of an attack plugin; empty for none. The first ``num_byzantine`` partitions are hostile.
    plugins : str
        Modules to import first, comma-separated: plugins inside the app's own package.
    num_rounds : int
        Rounds to run, >= 1.
    seed : int
        Seed of everything that is drawn: initial parameters, cohorts, shuffling; >= 0.
    stop : str
        Spec of a stopping rule; empty for none.
    evaluate_every : int
        Evaluate after every so many rounds, >= 1, and after the last.
    client_evaluation : bool
        Also evaluate on the clients' own validation data.
    round_timeout_s : float
        Deadline of one exchange in seconds, > 0.
    run_dir : str
        Folder for events, checkpoints and the final model; empty keeps nothing.
    checkpoint_every, keep_checkpoints : int
        Save after every so many rounds; keep the newest so many; both >= 1.
    resume : bool
        Continue from the newest checkpoint in ``run_dir``.
    virtual_clients : int
        Number of clients in all, which the SuperNodes host between them; 0: every SuperNode is one client.
    in_process_cores : int
        Cores of the nodes that a simulation serves in its own process, one after the other, instead of in
        Ray's actors; 0: in actors. Real SuperNodes do not mind.
    privacy_ledger : str
        File with what a strategy with a privacy budget has spent; runs on the same clients share one. A
        relative path is seen from ``run_dir``. Empty: ``privacy_ledger.jsonl`` there.
    simulated_helpers : int
        In Flower's simulation, whose nodes all have one config: how many nodes, the last ones, are helpers of
        ``additive_aggregation``. Data are dealt among the others.
    simulated_sum_key : str
        The same for ``ckks_aggregation``: absolute path of the clients' key file. A deployed node refuses
        both.

    Raises
    ------
    ConfigTypeError
        If a number has the wrong type.
    ConfigError
        If a value breaks its rule.
    """

    strategy: str = "fedavg"
    client: str = "supervised"
    task: str = "digits"
    attack: str = ""
    plugins: str = ""
    num_rounds: int = 5
    seed: int = 0
    stop: str = ""
    evaluate_every: int = 1
    client_evaluation: bool = True
    round_timeout_s: float = 600.0
    run_dir: str = ""
    checkpoint_every: int = 1
    keep_checkpoints: int = 3
    resume: bool = False
    virtual_clients: int = 0
    in_process_cores: int = 0
    privacy_ledger: str = ""
    simulated_helpers: int = 0
    simulated_sum_key: str = ""

    @classmethod
    def defaults(cls) -> dict[str, RunConfigValue]:
        """Return every run-config key with its default, as ``[tool.flwr.app.config]`` declares them."""
        return {_key(field.name): getattr(cls, field.name) for field in fields(cls)}

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Any]) -> "RunConfig":
        """Read Flower's run config; keys that are not ours belong to the user's own app and are left alone.

        Raises
        ------
        ConfigTypeError
            If a value has another type than its default (an int is fine where a float is expected).
        ConfigError
            If a value breaks its rule.
        """
        given: dict[str, Any] = {}
        for field in fields(cls):
            key, default = _key(field.name), getattr(cls, field.name)
            if key not in run_config:
                continue
            value = run_config[key]
            if type(default) is float and type(value) is int:
                value = float(value)
            if type(value) is not type(default):
                raise ConfigTypeError(
                    f"run config: {key}={value!r} is {type(value).__name__}, but {type(default).__name__} is "
                    f"expected (default {default!r}); change it in --run-config or pyproject.toml."
                )
            given[field.name] = value
        return cls(**given)

    def __post_init__(self) -> None:
        for name in ("strategy", "client", "task"):
            if not getattr(self, name).strip():
                raise ConfigError(
                    f"run config: {name} is empty, but a plugin must be named; see `fl-plugins list`."
                )
        for name in ("num_rounds", "evaluate_every", "checkpoint_every", "keep_checkpoints"):
            check_int("run config", _key(name), getattr(self, name), minimum=1)
        check_int("run config", "seed", self.seed, minimum=0)
        check_int("run config", "virtual-clients", self.virtual_clients, minimum=0)
        check_int("run config", "simulated-helpers", self.simulated_helpers, minimum=0)
        check_int("run config", "in-process-cores", self.in_process_cores, minimum=0)
        check_number("run config", "round-timeout-s", self.round_timeout_s, minimum=0, open_below=True)


def _key(name: str) -> str:
    """Return the run-config key of a field."""
    return name.replace("_", "-")


def partition_of(node_config: Mapping[str, Any]) -> tuple[int, int]:
    """Return this node's partition id and the number of partitions, from the node's own config."""
    try:
        partition_id, num_partitions = node_config[wire.PARTITION_ID], node_config[wire.NUM_PARTITIONS]
    except KeyError as error:
        raise ConfigError(
            f"node config: {error.args[0]!r} is missing, but the client must know its data; start the "
            "SuperNode with --node-config 'partition-id=0 num-partitions=4'."
        ) from None
    return int(partition_id), int(num_partitions)


def hosted(config: RunConfig, partition_id: int, num_partitions: int) -> list[int]:
    """Return the virtual clients of the node with this partition: every ``num_partitions``-th.

    >>> hosted(RunConfig(virtual_clients=7), 1, 3)
    [1, 4]
    """
    return list(range(partition_id, config.virtual_clients, num_partitions))
