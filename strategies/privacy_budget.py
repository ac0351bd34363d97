"""What a private strategy may spend and has spent: planned before the run, charged before messages leave."""

import logging
from pathlib import Path

from fl_plugins.checks import check_int, check_number
from fl_plugins.errors import CheckpointError, ConfigError
from fl_plugins.privacy import NeighborRelation, Release, Report, Sampling
from fl_plugins.privacy.accounting import check_delta
from fl_plugins.privacy_account import PrivacyAccount
from fl_plugins.privacy_ledger import PrivacyLedger
from fl_plugins.privacy_plan import smallest_noise_multiplier

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
    check_delta(owner, delta)
    if (noise_multiplier is None) == (target_epsilon is None) or (target_epsilon is None) != (
        num_rounds is None
    ):
        raise ConfigError(
            f"{owner}: noise_multiplier={noise_multiplier}, target_epsilon={target_epsilon} and num_rounds="
            f"{num_rounds}; give either noise_multiplier, or target_epsilon with the num_rounds that it is for."
        )
    if noise_multiplier is not None:
        return float(noise_multiplier)
    assert target_epsilon is not None
    assert num_rounds is not None
    check_number(owner, "target_epsilon", target_epsilon, minimum=0.0, open_below=True)
    check_int(owner, "num_rounds", num_rounds, minimum=1)
    return smallest_noise_multiplier(
        epsilon=target_epsilon, delta=delta, num_releases=num_rounds, sampling=sampling, relation=relation
    )


class PrivacyBudget:
    """The account of one strategy: the same release every round.

    Parameters
    ----------
    owner : str
        The strategy's name.
    release : Release
        What a round makes public.
    delta, max_epsilon
        The budget; without ``max_epsilon`` rounds are counted and not limited.
    """

    def __init__(self, owner: str, release: Release, *, delta: float, max_epsilon: float | None) -> None:
        check_delta(owner, delta)
        self.owner, self.release, self.delta, self.max_epsilon = owner, release, delta, max_epsilon
        self._reserved: tuple[int, int] | None = None
        self._account = self._account_in(PrivacyLedger(release.relation))

    def __repr__(self) -> str:
        return f"delta={self.delta}, max_epsilon={self.max_epsilon}"

    @property
    def num_releases(self) -> int:
        """How many releases are charged, by all runs in the ledger."""
        return self._account.ledger.num_releases

    def open(self, path: Path | None, *, configuration: str, resume: bool) -> None:
        """Take up the ledger in ``path``; without one, go on counting in memory.

        Raises
        ------
        CheckpointError
            If the run is resumed and the ledger's newest run had another configuration.
        DataError, ContractError
            If the ledger is damaged, or for another unit or adjacency.
        """
        self._reserved = None
        if path is None:
            logger.info("%s: what is spent is counted in memory only; give a run-dir to keep it", self.owner)
        elif self._account.ledger.path != path:
            self._account = self._account_in(PrivacyLedger(self.release.relation, path))
        ledger = self._account.ledger
        ledger.refresh()
        if resume and ledger.configuration not in (None, configuration):
            raise CheckpointError(
                f"resume: the privacy ledger {path} is of {ledger.configuration!r}, but this run is {configuration!r}; "
                "resume with the same configuration, or start anew with a ledger of its own."
            )
        if ledger.num_releases:
            logger.info("%s: spent before this run: %s", self.owner, self.report())
        ledger.open(configuration)

    def check_spent(self, least: int) -> None:
        """Refuse a ledger that has forgotten releases which the checkpoint knows of.

        Raises
        ------
        CheckpointError
            If it has fewer than ``least``.
        """
        if self.num_releases < least:
            raise CheckpointError(
                f"resume: the privacy ledger {self._account.ledger.path} has {self.num_releases} releases, but the "
                f"checkpoint was made after {least}; restore the ledger, ε would be too small without it."
            )

    def stop_reason(self) -> str | None:
        """Return why another round may not be run, or ``None``."""
        return self._account.refusal(self.release)

    def reserve(self, number: int) -> None:
        """Charge round ``number``, before its messages leave.

        Raises
        ------
        BudgetError
            If it would exceed the budget.
        """
        self._reserved = (number, self._account.reserve(self.release, f"round {number}"))

    def check_reserved(self, number: int) -> None:
        """Refuse to release a round that is not charged, or a second time.

        Raises
        ------
        ConfigError
            If it is not.
        """
        if self._reserved is None or self._reserved[0] != number:
            raise ConfigError(
                f"{self.owner}: round {number} was released before, or never charged; call configure_train for every "
                "release: each costs."
            )

    def commit(self, number: int) -> Report:
        """Note that round ``number`` was released; return what is spent so far."""
        self.check_reserved(number)
        assert self._reserved is not None
        self._account.commit(self._reserved[1])
        self._reserved = None
        return self._account.quick_report()

    def report(self) -> Report:
        """Return what is spent by all runs in the ledger."""
        return self._account.report()

    def _account_in(self, ledger: PrivacyLedger) -> PrivacyAccount:
        """Return the account that ``ledger`` keeps."""
        return PrivacyAccount(ledger, delta=self.delta, max_epsilon=self.max_epsilon, owner=self.owner)
