"""The round loop: train, evaluate, checkpoint, stop; retry without quorum; resume exactly.

Flower's ``Strategy.start`` has no place for resume, quorum, early stop or streaming of replies, so the
loop is ours. It drives a strategy only through Flower's four hooks and the few methods of :class:`Runnable`.
"""

import logging
import platform
import secrets
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl_plugins.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from fl_plugins.errors import BudgetError, CheckpointError, ConfigError, PreconditionError, QuorumError
from fl_plugins.records import Layout, from_named, to_named
from fl_plugins.run_options import RunOptions
from fl_plugins.training import NamedArrays

from .cohort import Tally
from .exchange import exchange
from .history import MetricsHistory, to_result
from .options import Settings
from .packed_grid import packed
from .replies import Metrics

logger = logging.getLogger("flwr.fl_plugins")


class Runnable(Protocol):
    """What the loop needs of a strategy: Flower's hooks, and a state that can be saved."""

    settings: Settings
    tally: Tally

    def begin(self, options: RunOptions, *, seed: int) -> None: ...  # noqa: D102
    def stop_before(self, number: int) -> str | None: ...  # noqa: D102
    def dealt(self) -> list[int]: ...  # noqa: D102
    def expect_dealt(self, partitions: Iterable[int]) -> None: ...  # noqa: D102
    def summary(self) -> None: ...  # noqa: D102
    def describe(self) -> str: ...  # noqa: D102
    def state(self) -> NamedArrays: ...  # noqa: D102
    def restore(self, parameters: NamedArrays, state: NamedArrays) -> None: ...  # noqa: D102
    def configure_train(  # noqa: D102
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]: ...
    def aggregate_train(  # noqa: D102
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]: ...
    def configure_evaluate(  # noqa: D102
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]: ...
    def aggregate_evaluate(  # noqa: D102
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None: ...


@dataclass(frozen=True, kw_only=True)
class RunState:
    """Everything that the next round depends on, beside the strategy's own arrays."""

    round: int
    arrays: NamedArrays
    history: MetricsHistory


def run_rounds(strategy: Runnable, grid: Grid, initial_arrays: ArrayRecord, options: RunOptions) -> Result:
    """Run rounds up to ``options.num_rounds`` and return the result.

    Guarantees
    ----------
    - A run that is killed at any moment and started again with ``resume`` ends with the same parameters,
      bit for bit, as an undisturbed run of the same seed (given clients that are deterministic).
    - An error that ends the run carries the result so far (``error.result``); checkpoints stay.

    Raises
    ------
    QuorumError, PreconditionError
        If a round finds no quorum in ``max_attempts`` attempts, or the rule cannot work on the cohort.
    CheckpointError
        If ``resume`` finds a checkpoint that is damaged or of another run.
    """
    return _Run(strategy, grid, initial_arrays, options).run()


class _Run:
    """One run: the strategy, the grid, the options, and the current state."""

    def __init__(self, strategy: Runnable, grid: Grid, initial: ArrayRecord, options: RunOptions) -> None:
        self.strategy, self.grid, self.options = strategy, packed(grid), options
        self.emit = options.emit
        self.state = RunState(round=0, arrays=to_named(initial), history=MetricsHistory())
        self.layout = Layout.of(self.state.arrays)
        self.saved = self._find_checkpoint()
        self.begun = False
        self.last_saved: int | None = None
        seed = secrets.randbits(32) if options.seed is None else options.seed
        self.seed: int = self.saved.facts["seed"] if self.saved and options.seed is None else seed

    def run(self) -> Result:
        """Run to the end; an error that ends the run takes the result so far with it."""
        started = time.monotonic()
        try:
            self._begin()
            reason = self._stop_reason()
            while reason is None and self.state.round < self.options.num_rounds:
                try:
                    self._round(self.state.round + 1)
                    reason = self._stop_reason()
                except BudgetError as error:  # for another attempt at a round: the model is the last round's
                    reason = str(error)
                self._save_if_due(last=reason is not None or self.state.round == self.options.num_rounds)
        except Exception as error:
            self._fail(error)
            raise
        if reason is not None:
            logger.info("stopped after round %d: %s", self.state.round, reason)
            self.emit("run_stopped", round=self.state.round, reason=reason)
        seconds = round(time.monotonic() - started, 3)
        self.emit("run_finished", rounds=self.state.round, seconds=seconds, metrics=self._latest_metrics())
        return self._result()

    def _fail(self, error: Exception) -> None:
        """Keep what was reached: in the error, and in a checkpoint if the last round is in none yet."""
        kind = type(error).__name__
        try:
            self.emit("run_failed", error=f"{kind}: {error}", kind=kind, round=self.state.round)
        except OSError as second:  # a full disk must not hide what ended the run
            error.add_note(f"and this could not be written to the run's events: {second}")
        if not self.begun:
            return
        with suppress(AttributeError):  # an exception without a __dict__
            error.result = self._result()  # type: ignore[attr-defined]
        try:
            self._save_if_due(last=True)
        except OSError as second:
            error.add_note(f"and the checkpoint of round {self.state.round} could not be saved: {second}")

    def _begin(self) -> None:
        """Announce the run; take up the checkpoint, or evaluate and save the initial parameters."""
        options = self.options
        self.strategy.begin(options, seed=self.seed)
        self.strategy.summary()
        resumed_from = None
        if self.saved is not None:
            self._check_identity(self.saved)
            arrays = dict(self.saved.arrays["model"])
            self.strategy.restore(arrays, dict(self.saved.arrays["strategy"]))
            history = MetricsHistory.from_facts(self.saved.facts["history"])
            self.state = RunState(round=self.saved.round, arrays=arrays, history=history)
            self.strategy.expect_dealt(self.saved.facts.get("dealt", []))
            resumed_from = self.last_saved = self.saved.round
        self.begun = True
        logger.info("seed %d", self.seed)
        self.emit(
            "run_started",
            **{
                "strategy": type(self.strategy).__name__,
                "client": "",
                "task": "",
                "attack": "",
                **options.identity,
            },
            rule=self.strategy.describe(),
            num_rounds=options.num_rounds,
            seed=self.seed,
            resumed_from=resumed_from,
            versions=_versions(),
        )
        if self.saved is None:
            self._evaluate_at_server(0)
            self._save_if_due(last=True)

    def _round(self, number: int) -> None:
        """Run one round and replace the state."""
        started = time.monotonic()
        logger.info("[ROUND %d/%d]", number, self.options.num_rounds)
        arrays, metrics = self._train(number)
        history = self.state.history.with_metrics("train", number, metrics)
        self.state = RunState(round=number, arrays=arrays, history=history)
        if number == self.options.num_rounds or number % self.options.evaluate_every == 0:
            if self.options.client_evaluation:
                self._evaluate_at_clients(number)
            self._evaluate_at_server(number)
        seconds = time.monotonic() - started
        evaluated = self._latest_metrics()
        logger.info("\tround %d took %.2f s: %s", number, seconds, evaluated)
        tally = self.strategy.tally
        self.emit(
            "round_finished",
            round=number,
            seconds=round(seconds, 3),
            metrics=evaluated,
            sampled=tally.answered + len(tally.missing),
            answered=tally.answered,
            quarantined=tally.quarantined,
        )

    def _train(self, number: int) -> tuple[NamedArrays, Metrics | None]:
        """Train one round, again and again while there is no quorum and attempts are left."""
        options, settings = self.options, self.strategy.settings
        attempts = 1 if settings.on_shortfall == "raise" else settings.max_attempts
        arrays = from_named(self.state.arrays)
        for attempt in range(1, attempts + 1):
            messages = self.strategy.configure_train(number, arrays, options.train_config, self.grid)
            replies = exchange(self.grid, messages, timeout_s=options.timeout_s)
            try:
                new_arrays, metrics = self.strategy.aggregate_train(number, replies)
            except (QuorumError, PreconditionError) as error:
                if attempt == attempts:
                    raise
                logger.warning("attempt %d of %d failed: %s", attempt, attempts, error)
                self.emit("round_retried", round=number, attempt=attempt, reason=str(error))
                continue
            break
        named = self.state.arrays if new_arrays is None else to_named(new_arrays)
        return named, None if metrics is None else _metrics(metrics)

    def _evaluate_at_clients(self, number: int) -> None:
        """Evaluate on the clients' own data; too few nodes for it is no reason to end a run that trains."""
        arrays, config = from_named(self.state.arrays), self.options.evaluate_config
        try:
            messages = list(self.strategy.configure_evaluate(number, arrays, config, self.grid))
        except QuorumError as error:
            logger.warning("round %d is not evaluated by clients: %s", number, error)
            return
        if not messages:
            return
        replies = exchange(self.grid, messages, timeout_s=self.options.timeout_s)
        record = self.strategy.aggregate_evaluate(number, replies)
        self._record_evaluation("clients", number, record)

    def _evaluate_at_server(self, number: int) -> None:
        """Evaluate with the caller's function."""
        if self.options.evaluate_fn is not None:
            record = self.options.evaluate_fn(number, from_named(self.state.arrays))
            self._record_evaluation("server", number, record)

    def _record_evaluation(self, where: str, number: int, record: MetricRecord | None) -> None:
        """Put an evaluation's metrics into the history and the log."""
        if record is None:
            return
        metrics = _metrics(record)
        self.state = replace(self.state, history=self.state.history.with_metrics(where, number, metrics))
        self.emit("evaluated", round=number, where=where, metrics=metrics)

    def _stop_reason(self) -> str | None:
        """Ask the stopping rule, and the strategy whether it may go on if there is another round to run."""
        stopper, following = self.options.stopper, self.state.round + 1
        reason = None if stopper is None else stopper.should_stop(self.state.history.evaluated())
        if reason is None and following <= self.options.num_rounds:
            reason = self.strategy.stop_before(following)
        return reason

    def _save_if_due(self, *, last: bool) -> None:
        """Write a checkpoint of the current state, if this round is to be kept."""
        folder = self.options.checkpoint_dir
        due = last or self.state.round % self.options.checkpoint_every == 0
        if folder is None or not due or self.last_saved == self.state.round:
            return
        facts = {"identity": self._identity(), "seed": self.seed, "history": self.state.history.to_facts()}
        facts["dealt"] = self.strategy.dealt()
        groups = {"model": self.state.arrays, "strategy": self.strategy.state()}
        checkpoint = Checkpoint(round=self.state.round, arrays=groups, facts=facts)
        path = save_checkpoint(folder, checkpoint, keep=self.options.keep_checkpoints)
        self.last_saved = self.state.round
        self.emit("checkpoint_saved", round=self.state.round, path=str(path))

    def _find_checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint if the run is to be resumed and there is one; never mix two runs."""
        folder = self.options.checkpoint_dir
        path = None if folder is None else latest_checkpoint(folder)
        if path is None:
            return None
        if not self.options.resume:
            raise ConfigError(
                f"run: {folder} holds checkpoints of an earlier run ({path.name}), which this one would "
                "mix with its own; give resume=True to continue it, or another folder."
            )
        return load_checkpoint(path)

    def _identity(self) -> dict[str, str]:
        """Return what two runs must share to continue one another."""
        return {
            **self.options.identity,
            "rule": self.strategy.describe(),
            "layout": self.layout.fingerprint,
        }

    def _check_identity(self, saved: Checkpoint) -> None:
        """Refuse a checkpoint of another model, strategy, task or seed."""
        theirs = {**saved.facts["identity"], "seed": str(saved.facts["seed"])}
        ours = {**self._identity(), "seed": str(self.seed)}
        for key in ours | theirs:
            if theirs.get(key) != ours.get(key):
                raise CheckpointError(
                    f"resume: the checkpoint of round {saved.round} has {key}={theirs.get(key)!r}, but this "
                    f"run has {ours.get(key)!r}; resume with the same configuration, or start anew in "
                    "another folder."
                )

    def _latest_metrics(self) -> dict[str, float]:
        """Return the newest evaluation's metrics."""
        evaluated = self.state.history.evaluated()
        return dict(evaluated[-1][1]) if evaluated else {}

    def _result(self) -> Result:
        """Return Flower's result object for the state reached."""
        return to_result(self.state.arrays, self.state.history)


def _metrics(record: MetricRecord) -> Metrics:
    """Return a record's metrics as floats."""
    return {k: [float(x) for x in v] if isinstance(v, list) else float(v) for k, v in record.items()}


def _versions() -> dict[str, str]:
    """Return the versions that an auditor would ask for."""
    names = ("fl-plugins", "flwr", "jax", "flax", "optax", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
