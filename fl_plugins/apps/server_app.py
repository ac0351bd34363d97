"""The ready-made ServerApp: builds what the run config names and runs it.

Everything is built and checked before the first message leaves: a misspelt plugin, a parameter out of
range or a cohort too small for the rule ends the run at once, with an error that says what to change.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy

from ..checkpoints import Checkpoint, write_archive
from ..errors import ConfigError, ContractError
from ..records import from_named, to_named
from ..registry import Kind, load_modules
from ..run_options import EvaluateFn, ManagedStrategy, RunOptions, ignore_event
from ..runlog.events import EventLog
from ..seeds import derive_seed
from ..spec import build, parse
from ..training import HasGoal
from .config import RunConfig
from .cores import one_device_per_core
from .stack import ClientStack, client_stack

FINAL_MODEL = "final_model.ckpt"
PRIVACY_LEDGER = "privacy_ledger.jsonl"
WRITER_LOCK = ".server-app.lock"
WRITER_TIMEOUT_S = 20.0
"""A ServerApp whose run was stopped notices when it next asks its SuperLink something."""


def run_app(grid: Grid, config: RunConfig) -> Result:
    """Build the stack of ``config``, run it, and keep what it leaves in ``run_dir``."""
    if config.virtual_clients and config.in_process_cores:
        one_device_per_core(config.in_process_cores)  # the nodes are served here, and JAX is not set up twice
    load_modules(config.plugins)
    strategy = build(Kind.STRATEGY, config.strategy)
    stopper = build(Kind.STOPPER, config.stop) if config.stop.strip() else None
    stack = client_stack(config)
    initial = from_named(stack.trainer.init(seed=derive_seed(config.seed, "init")))
    evaluate_fn = _server_evaluation(stack)
    run_dir = Path(config.run_dir) if config.run_dir else None
    if not isinstance(strategy, ManagedStrategy):
        result = _run_foreign(strategy, grid, initial, config, evaluate_fn)
        if run_dir is not None:
            _keep_model(run_dir / FINAL_MODEL, result, config)
        return result
    options = RunOptions(
        num_rounds=config.num_rounds,
        timeout_s=config.round_timeout_s,
        seed=config.seed,
        evaluate_fn=evaluate_fn,
        evaluate_every=config.evaluate_every,
        client_evaluation=config.client_evaluation,
        stopper=stopper,
        checkpoint_dir=run_dir / "checkpoints" if run_dir else None,
        checkpoint_every=config.checkpoint_every,
        keep_checkpoints=config.keep_checkpoints,
        resume=config.resume,
        identity=_identity(config),
        roll_call=True,
        virtual_clients=config.virtual_clients,
        privacy_ledger=_privacy_ledger(config, run_dir),
        emit=EventLog(run_dir / "events.jsonl") if run_dir else ignore_event,
    )
    with only_writer(run_dir):
        try:
            result = strategy.run(grid, initial, options)
        except Exception as error:
            reached = getattr(error, "result", None)
            if run_dir is not None and isinstance(reached, Result):
                try:
                    _keep_model(run_dir / FINAL_MODEL, reached, config)
                except OSError as second:  # a full disk must not hide what ended the run
                    error.add_note(f"and the parameters reached could not be kept: {second}")
            raise
        if run_dir is not None:
            _keep_model(run_dir / FINAL_MODEL, result, config)
    return result


def _privacy_ledger(config: RunConfig, run_dir: Path | None) -> Path | None:
    """Return where the privacy ledger is; the run config's path is as seen from the run's folder."""
    if run_dir is None:
        return Path(config.privacy_ledger) if config.privacy_ledger else None
    return run_dir / (config.privacy_ledger or PRIVACY_LEDGER)


@contextmanager
def only_writer(run_dir: Path | None) -> Iterator[None]:
    """Keep every other ServerApp out of ``run_dir``; the kernel lets go of it when this process ends.

    Raises
    ------
    ConfigError
        If another ServerApp writes there: one that was given up, or cut off, but still runs.
    """
    if run_dir is None:
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / WRITER_LOCK).open("w") as lock:
        deadline = time.monotonic() + WRITER_TIMEOUT_S
        while not _locked(lock):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"run config: run-dir={str(run_dir)!r}, but another ServerApp writes into it; stop that "
                    "run (`flwr stop`), or give another folder."
                )
            time.sleep(0.1)
        yield


def _locked(file: IO[str]) -> bool:
    """Lock a file for this process; return whether that was possible."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _identity(config: RunConfig) -> dict[str, str]:
    """Return what a resumed run must share with the one that it continues."""
    specs = {name: _canonical(getattr(config, name)) for name in ("strategy", "client", "task", "attack")}
    return specs | ({"virtual-clients": str(config.virtual_clients)} if config.virtual_clients else {})


def _canonical(spec: str) -> str:
    """Return a spec's one canonical text: ``fedavg`` and ``fedavg()`` are the same run."""
    return str(parse(spec)) if spec.strip() else ""


def _run_foreign(
    strategy: Any, grid: Grid, initial: ArrayRecord, config: RunConfig, evaluate_fn: EvaluateFn | None
) -> Result:
    """Run a strategy that is not ours with its own loop, which can neither resume nor stop early."""
    if not isinstance(strategy, Strategy):
        raise ContractError(
            f"{config.strategy}: made a {type(strategy).__name__}, but a flwr.serverapp.strategy.Strategy "
            "is needed."
        )
    if config.virtual_clients:
        raise ConfigError(
            f"{config.strategy}: virtual-clients={config.virtual_clients}, but Flower's own strategies know "
            "no cohort nodes; set it to 0, or derive the strategy from strategies.FederatedStrategy."
        )
    if config.resume or config.stop:
        raise ConfigError(
            f"{config.strategy}: runs Flower's own round loop, which knows neither resume nor stop; leave "
            "them out, or derive the strategy from strategies.FederatedStrategy."
        )
    return strategy.start(
        grid,
        initial,
        num_rounds=config.num_rounds,
        timeout=config.round_timeout_s,
        evaluate_fn=evaluate_fn,
    )


def _server_evaluation(stack: ClientStack) -> EvaluateFn | None:
    """Return the evaluation on the task's held-out data, or ``None`` if it has none."""
    if stack.task.load_test is None:
        return None
    data = stack.task.load_test()
    attack: object = stack.attack
    goal = attack.success_data(data) if isinstance(attack, HasGoal) else None

    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        named = to_named(arrays)
        metrics: dict[str, Any] = dict(stack.trainer.evaluate(named, data))
        if goal is not None and "accuracy" in metrics:
            metrics["attack_success_rate"] = stack.trainer.evaluate(named, goal)["accuracy"]
        return MetricRecord(metrics)

    return evaluate


def _keep_model(path: Path, result: Result, config: RunConfig) -> None:
    """Write the parameters reached, in the format of a checkpoint."""
    rounds = max(result.train_metrics_clientapp, default=0)
    facts = {name: getattr(config, name) for name in ("strategy", "client", "task", "attack", "seed")}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_archive(path, Checkpoint(round=rounds, arrays={"model": to_named(result.arrays)}, facts=facts))


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run config says."""
    run_app(grid, RunConfig.from_run_config(context.run_config))
