"""How a run goes, whatever the strategy: the loop's own settings, shared by apps and strategies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from .checks import check_int, check_number
from .errors import ConfigError, ConfigTypeError

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
"""``(round, parameters) -> metrics``: evaluation at the server, for example on held-out data."""

History = Sequence[tuple[int, Mapping[str, float]]]
"""Metrics by round, oldest first."""


class Stopper(Protocol):
    """A stopping rule: stateless, so that a resumed run stops where an undisturbed one does."""

    def should_stop(self, history: History) -> str | None:
        """Return why the run should end now, or ``None``."""
        ...


class Emit(Protocol):
    """Where events go: one call per event, ``emit("round_started", round=3, ...)``."""

    def __call__(self, event: str, /, **fields: Any) -> None:
        """Record one event."""
        ...


def ignore_event(event: str, /, **fields: Any) -> None:
    """Drop the event: the default of a run that keeps no log."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Settings of one run.

    Parameters
    ----------
    num_rounds : int
        Last round to run; a resumed run counts the rounds before it.
    timeout_s : float
        Deadline of one exchange (sampling, training, evaluation) in seconds.
    seed : int, optional
        Seed of the cohort sampling. ``None`` draws one and records it.
    train_config, evaluate_config : ConfigRecord
        Sent to the clients with every message.
    evaluate_fn : callable, optional
        Evaluation at the server, before round 1 and after every ``evaluate_every`` rounds.
    evaluate_every : int
        Evaluate (at server and clients) after every so many rounds, and after the last.
    client_evaluation : bool
        Whether clients evaluate too, as far as the strategy samples any for it.
    stopper : Stopper, optional
        Asked after every evaluated round, with the server's metrics (the clients' if there are none).
    checkpoint_dir : Path, optional
        Where checkpoints go; ``None`` keeps none.
    checkpoint_every, keep_checkpoints : int
        Save after every so many rounds (and after the last); keep the newest so many files.
    resume : bool
        Continue from the newest checkpoint in ``checkpoint_dir``, exactly; start anew if there is none.
    identity : Mapping[str, str]
        Facts that a resumed run must share with the checkpoint, beside strategy, layout and seed.
    roll_call : bool
        Ask nodes for their stable names (fl-plugins clients answer; others keep their node ids).
    virtual_clients : int
        Number of virtual clients that cohort nodes host between them, named ``0 .. virtual_clients - 1``;
        needs ``roll_call``. With 0 every node is one client.
    privacy_ledger : Path, optional
        Where a strategy with a privacy budget keeps what was spent; runs on the same clients share one file.
        ``None`` keeps it beside the checkpoints, or in memory if there are none.
    emit : Emit
        Receives the run's events, see :mod:`fl_plugins.runlog.events`.
    """

    num_rounds: int
    timeout_s: float = 3600.0
    seed: int | None = None
    train_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_fn: EvaluateFn | None = None
    evaluate_every: int = 1
    client_evaluation: bool = True
    stopper: Stopper | None = None
    checkpoint_dir: Path | None = None
    checkpoint_every: int = 1
    keep_checkpoints: int = 3
    resume: bool = False
    identity: Mapping[str, str] = field(default_factory=dict)
    roll_call: bool = False
    virtual_clients: int = 0
    privacy_ledger: Path | None = None
    emit: Emit = ignore_event

    def __post_init__(self) -> None:
        check_int("run", "num_rounds", self.num_rounds, minimum=0)
        for name in ("evaluate_every", "checkpoint_every", "keep_checkpoints"):
            check_int("run", name, getattr(self, name), minimum=1)
        check_number("run", "timeout_s", self.timeout_s, minimum=0, open_below=True)
        if self.seed is not None:
            check_int("run", "seed", self.seed, minimum=0)
        for name in ("checkpoint_dir", "privacy_ledger"):
            path = getattr(self, name)
            if path is not None and not isinstance(path, Path):
                raise ConfigTypeError(f"run: {name}={path!r} is no pathlib.Path; give a Path.")
        check_int("run", "virtual_clients", self.virtual_clients, minimum=0)
        if self.virtual_clients and not self.roll_call:
            raise ConfigError(
                f"run: virtual_clients={self.virtual_clients}, but nodes are asked which of them they "
                "host only with roll_call=True; set it."
            )
        if self.resume and self.checkpoint_dir is None:
            raise ConfigError(
                "run: resume=True, but there is no folder with checkpoints; give checkpoint_dir (run config: "
                "run-dir)."
            )


@runtime_checkable
class ManagedStrategy(Protocol):
    """A strategy whose rounds can be checkpointed, resumed, observed and stopped (all of ours)."""

    def run(self, grid: Grid, initial_arrays: ArrayRecord, options: RunOptions) -> Result:
        """Run to the end and return Flower's ``Result``."""
        ...
