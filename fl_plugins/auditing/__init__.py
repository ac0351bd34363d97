"""Audits of what really runs: private strategies and trainers attacked, and what that shows beside what they account.

"""

from .canaries import PrivateStrategy, audit_strategy
from .findings import Finding
from .records import PrivateTrainer, audit_trainer, canary_task

__all__ = [
    "Finding",
    "PrivateStrategy",
    "PrivateTrainer",
    "audit_strategy",
    "audit_trainer",
    "canary_task",
]
