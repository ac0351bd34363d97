"""One account of privacy: what is spent, what may be, and the gate between; used by servers and by nodes."""

from .errors import BudgetError
from .privacy import Accountant, Budget, Release, Report
from .privacy_ledger import PrivacyLedger
from .privacy_plan import best_report


class PrivacyAccount:
    """Charges releases to a ledger as long as the budget lasts.

    Parameters
    ----------
    ledger : PrivacyLedger
        Where it is written down; runs that share it are composed.
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

    def __init__(self, ledger: PrivacyLedger, *, delta: float, max_epsilon: float | None, owner: str) -> None:
        self.ledger, self.delta, self.owner = ledger, delta, owner
        self.budget = None if max_epsilon is None else Budget(epsilon=max_epsilon, delta=delta)
        self._accountant = Accountant(ledger.relation)

    def refusal(self, release: Release) -> str | None:
        """Return why ``release`` may not be made, or ``None``."""
        if self.budget is None or not self._up_to_date().would_exceed(release, self.budget):
            return None
        return (
            f"{self.owner}: ε = {self.report().epsilon:.4g} is spent ({self.ledger.num_releases} releases), and one "
            f"more would exceed max_epsilon={self.budget.epsilon:g} at δ = {self.delta:g}, {self.ledger.relation}"
        )

    def reserve(self, release: Release, label: str) -> int:
        """Charge ``release`` before it is made, and return what :meth:`commit` is told.

        Raises
        ------
        BudgetError
            If it would exceed the budget; nothing is charged then.
        """
        with self.ledger.locked():
            refusal = self.refusal(release)
            if refusal is not None:
                raise BudgetError(f"{refusal}; stop here, or plan with more noise or a larger budget.")
            return self.ledger.reserve(release, label)

    def commit(self, identifier: int) -> None:
        """Note that the release was made."""
        self.ledger.commit(identifier)

    def report(self) -> Report:
        """Return what is spent by all runs in the ledger, by the best accounting (tenths of a second)."""
        return best_report(self._up_to_date(), self.delta)

    def quick_report(self) -> Report:
        """Return the same in microseconds: more than is needed, but never more than the budget."""
        accountant = self._up_to_date()
        report = accountant.report(self.delta, pld=False)
        within = self.budget is None or report.epsilon <= self.budget.epsilon
        return report if within else best_report(accountant, self.delta)

    def _up_to_date(self) -> Accountant:
        """Return the accountant with all that the ledger has."""
        for release, count in self.ledger.releases.items():
            missing = count - self._accountant.counts.get(release, 0)
            if missing:
                self._accountant.compose(release, missing)
        return self._accountant
