"""One account of privacy: what is spent, what may be, and the gate between; used by servers and by nodes."""

from dataclasses import replace

from .errors import BudgetError
from .privacy import Accountant, Budget, NeighborRelation, Release, Report
from .privacy.ledger import Ledger


class PrivacyAccount:
    """Charges releases as long as the budget lasts: in memory, or in a ledger once one is given.

    Parameters
    ----------
    relation : NeighborRelation
        Unit and adjacency of every release.
    delta : float
        δ of every ε.
    max_epsilon : float, optional
        The budget; without it nothing is refused.
    owner : str
        How messages name the account.

    Guarantees
    ----------
    What :meth:`reserve` lets through is on disk before it returns, and ε with it is at most ``max_epsilon``.
    """

    def __init__(
        self, relation: NeighborRelation, *, delta: float, max_epsilon: float | None, owner: str
    ) -> None:
        self.relation, self.delta, self.owner = relation, delta, owner
        self.budget = None if max_epsilon is None else Budget(epsilon=max_epsilon, delta=delta)
        self._accountant = Accountant(relation)
        self._ledger: Ledger | None = None
        self._told = 0.0
        self._run = ""

    def keep_in(self, ledger: Ledger, *, run: str) -> None:
        """Go on in ``ledger``, for a run that it knows; what was counted in memory must be in it."""
        self._ledger, self._run = ledger, run
        self._accountant = ledger.accountant

    @property
    def counts(self) -> dict[Release, int]:
        """What is spent: every release, and how often."""
        return dict(self._accountant.counts)

    @property
    def num_releases(self) -> int:
        """How many releases are spent, by all runs."""
        return sum(self._accountant.counts.values())

    def count(self, release: Release, times: int) -> None:
        """Take up what was spent before, in memory."""
        self._accountant.compose(release, times)

    def refusal(self, release: Release) -> str | None:
        """Return why ``release`` may not be made, or ``None``."""
        if self.budget is None or not self._accountant.would_exceed(release, self.budget):
            return None
        spent = self.report().epsilon if self.num_releases else 0.0
        return (
            f"{self.owner}: ε = {spent:.4g} is spent by {self.num_releases} releases, and another would "
            f"exceed max_epsilon={self.budget.epsilon:g} at δ = {self.delta:g} ({self.relation})"
        )

    def reserve(self, release: Release, number: int) -> int:
        """Charge ``release`` before it is made, and return what :meth:`commit` is told.

        Raises
        ------
        BudgetError
            If it would exceed the budget; nothing is charged then.
        """
        refusal = self.refusal(release)
        if refusal is not None:
            raise BudgetError(f"{refusal}; stop here, or plan with more noise or a larger budget.")
        if self._ledger is not None:
            return self._ledger.reserve(release, run=self._run, number=number)
        self._accountant.compose(release)
        return self.num_releases

    def commit(self, reservation: int) -> None:
        """Note that the release was made."""
        if self._ledger is not None:
            self._ledger.commit(reservation)

    def report(self) -> Report:
        """Return what is spent, by the best accounting: tenths of a second where sampling amplifies."""
        return self._accountant.report(self.delta)

    def quick_report(self) -> Report:
        """Return the same in microseconds: more than is spent, never more than the budget.

        Near the budget the best accounting takes over, whose ε may be less than the one that was told before;
        that one was an upper bound too, and is told again, so that no reader sees ε shrink.
        """
        report = self._accountant.report(self.delta, pld=False)
        if self.budget is not None and report.epsilon > self.budget.epsilon:
            report = self.report()
        self._told = max(self._told, report.epsilon)
        return replace(report, epsilon=self._told)
