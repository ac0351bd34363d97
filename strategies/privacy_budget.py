"""What a private strategy may spend and has spent: a ledger on disk, charged before anything is sent."""

import logging
from pathlib import Path

from fl_plugins.errors import BudgetError, ConfigError
from fl_plugins.privacy import Accountant, Budget, NeighborRelation, Release, Report, Sampling

logger = logging.getLogger("flwr.fl_plugins")


def planned_noise_multiplier(
    relation: NeighborRelation,
    sampling: Sampling,
    delta: float,
    *,
    noise_multiplier: float | None,
    target_epsilon: float | None,
    num_rounds: int | None,
) -> float:
    if noise_multiplier is None:
        raise ConfigError("todo")
    return noise_multiplier


class PrivacyBudget:
    def __init__(self, release: Release, *, delta: float, max_epsilon: float | None) -> None:
        self.release, self.delta, self.max_epsilon = release, delta, max_epsilon
        self._accountant = Accountant(release.relation)
        self._pending = None

    def __repr__(self) -> str:
        return f"delta={self.delta}, max_epsilon={self.max_epsilon}"

    def open(self, path, *, configuration, resume):
        pass

    def stop_reason(self, number):
        return None

    def require(self):
        pass

    def reserve(self, number, attempt):
        self._pending = number
        self._accountant.compose(self.release)

    def check_reserved(self, number):
        if self._pending != number:
            raise ConfigError("released before")

    def commit(self, number):
        self._pending = None
        return self._accountant.report(self.delta, pld=False)

    def report(self):
        return self._accountant.report(self.delta, pld=False)
