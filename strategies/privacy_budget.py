"""What a private strategy may spend and has spent: planned before the run, charged before messages leave."""

import logging
import secrets
from dataclasses import asdict

from fl_plugins.checks import check_int
from fl_plugins.errors import CheckpointError, ConfigError
from fl_plugins.privacy import Budget, NeighborRelation, Release, Report, Sampling
from fl_plugins.privacy.accounting import check_delta
from fl_plugins.privacy.calibration import plan
from fl_plugins.privacy.ledger import Ledger
from fl_plugins.privacy_account import PrivacyAccount
from fl_plugins.run_options import RunOptions

from .replies import Metrics
from .session import Session

LEDGER_NAME = "privacy_ledger.jsonl"
"""Beside the checkpoints, if no other path is given: a run that is resumed finds what it has spent."""

logger = logging.getLogger("flwr.fl_plugins")


def planned_noise_multiplier(
    owner: str,
    relation: NeighborRelation,
    sampling: Sampling,
    delta: float,
    *,
    noise_multiplier: float | None,
    target_epsilon: float | None,
    num_rounds: int | None,
) -> float:
    """Return the noise multiplier that is given, or the smallest that keeps the target.

    Raises
    ------
    ConfigError
        Unless exactly one of ``noise_multiplier`` and ``target_epsilon`` with ``num_rounds`` is given.
    """
    target = read_target(
        owner, delta, noise_multiplier=noise_multiplier, target_epsilon=target_epsilon, num_rounds=num_rounds
    )
    if target is None:
        assert noise_multiplier is not None, "one of them is given"
        return float(noise_multiplier)
    budget, rounds = target
    return plan(budget, rounds=rounds, sampling=sampling, relation=relation).noise_multiplier


def read_target(
    owner: str,
    delta: float,
    *,
    noise_multiplier: float | None,
    target_epsilon: float | None,
    num_rounds: int | None,
) -> tuple[Budget, int] | None:
    """Return what is to be kept and for how many releases; ``None`` if the noise is given instead.

    Raises
    ------
    ConfigError
        Unless exactly one of ``noise_multiplier`` and ``target_epsilon`` with ``num_rounds`` is given.
    """
    check_delta(owner, delta)
    planned = (target_epsilon is not None) + (num_rounds is not None)
    if planned != (2 if noise_multiplier is None else 0):
        raise ConfigError(
            f"{owner}: noise_multiplier={noise_multiplier}, target_epsilon={target_epsilon} and num_rounds="
            f"{num_rounds}; give either noise_multiplier, or target_epsilon with num_rounds."
        )
    if target_epsilon is None or num_rounds is None:
        return None
    check_int(owner, "num_rounds", num_rounds, minimum=1)
    return Budget(epsilon=target_epsilon, delta=delta), num_rounds


class PrivacyBudget:
    """The account of one strategy: a release every round, or every so many rounds.

    Parameters
    ----------
    owner : str
        The strategy's name.
    release : Release
        What a round makes public, unless another is given for it.
    population : int
        Whose ledger it is: that of so many clients.
    delta, max_epsilon
        The budget; without ``max_epsilon`` rounds are counted and not limited.
    """

    def __init__(
        self, owner: str, release: Release, *, population: int, delta: float, max_epsilon: float | None
    ) -> None:
        check_delta(owner, delta)
        self.owner, self.release, self.population = owner, release, population
        self.delta, self.max_epsilon = delta, max_epsilon
        self._account = PrivacyAccount(release.relation, delta=delta, max_epsilon=max_epsilon, owner=owner)
        self._ledger: Ledger | None = None
        self._reserved: tuple[int, int | None] | None = None

    def __repr__(self) -> str:
        return f"delta={self.delta}, max_epsilon={self.max_epsilon}"

    @property
    def num_releases(self) -> int:
        """How many releases are charged, by all runs in the ledger."""
        return self._account.num_releases

    def open(self, options: RunOptions, *, configuration: str) -> None:
        """Take up the run's ledger; without one, go on counting in memory.

        Raises
        ------
        ConfigError
            If the ledger knows this run by another configuration, is another population's, or is open
            elsewhere.
        DataError
            If it is damaged.
        """
        self.close()
        self._reserved = None
        path, folder = options.privacy_ledger, options.checkpoint_dir
        if path is None and folder is not None:
            path = folder / LEDGER_NAME
        if path is None:
            logger.info("%s: what is spent is not kept: counted in memory only; give a run-dir", self.owner)
            return
        run = secrets.token_hex(8) if folder is None else str(folder.resolve())
        population = f"{self.population} clients"
        self._ledger = Ledger(path, population=population, relation=self.release.relation)
        self._ledger.begin(run, {"configuration": configuration})
        self._account.keep_in(self._ledger, run=run)
        if self.num_releases:
            logger.info("%s: spent before this run: %s", self.owner, self.report())

    def close(self) -> None:
        """Let other processes use the ledger; reports stay."""
        if self._ledger is not None:
            self._ledger.close()

    def check_spent(self, least: int) -> None:
        """Refuse a ledger that has forgotten releases which the checkpoint knows of.

        Raises
        ------
        CheckpointError
            If it has fewer than ``least``.
        """
        if self.num_releases < least:
            where = "memory" if self._ledger is None else self._ledger.path
            raise CheckpointError(
                f"resume: the privacy ledger ({where}) has {self.num_releases} releases, but the "
                f"checkpoint was made after {least}; restore the ledger, ε would be too small without it."
            )

    def stop_reason(self, release: Release | None = None) -> str | None:
        """Return why another round may not be run, or ``None``."""
        return self._account.refusal(self.release if release is None else release)

    def reserve(self, number: int, release: Release | None = None) -> None:
        """Charge round ``number``, before its messages leave.

        Raises
        ------
        BudgetError
            If it would exceed the budget.
        """
        self._reserved = (number, self._account.reserve(self.release if release is None else release, number))

    def go_on(self, number: int) -> None:
        """Let round ``number`` be released too by what was charged for a round before it."""
        self._reserved = (number, None)

    def check_reserved(self, number: int) -> None:
        """Refuse to release a round that is not charged, or a second time.

        Raises
        ------
        ConfigError
            If it is not.
        """
        if self._reserved is None or self._reserved[0] != number:
            raise ConfigError(
                f"{self.owner}: round {number} was released before, or never charged; call configure_train "
                "for every release: each costs."
            )

    def commit(self, number: int) -> Report:
        """Note that round ``number`` is released; return what is spent so far."""
        self.check_reserved(number)
        assert self._reserved is not None
        _, reservation = self._reserved
        if reservation is not None:
            self._account.commit(reservation)
        self._reserved = None
        return self._account.quick_report()

    def report(self) -> Report:
        """Return what is spent by all runs in the ledger."""
        return self._account.report()


def tell_spent(
    session: Session, number: int, report: Report, *, noise_multiplier: float, clip_norm: float
) -> Metrics:
    """Say in the log and as an event what round ``number`` has brought the run to; return it as metrics."""
    logger.info("\tround %d: spent %s", number, report)
    session.emit(
        "privacy",
        round=number,
        epsilon=report.epsilon,
        delta=report.delta,
        **asdict(report.relation),
        method=report.method,
        noise_multiplier=noise_multiplier,
        clip_norm=clip_norm,
        secure=report.secure,
    )
    return {"privacy-epsilon": report.epsilon, "privacy-delta": report.delta}
