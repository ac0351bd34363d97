"""Audits of what really runs: private strategies and trainers are attacked, which shows a lower bound on ε.

The bounds themselves are in :mod:`fl_plugins.privacy.audit` and :mod:`fl_plugins.privacy.membership`.
"""

from .canaries import PrivateStrategy, audit_strategy
from .findings import Finding
from .members import MembershipFinding, infer_membership
from .records import PrivateTrainer, audit_trainer, canary_task
from .replies import PrivateLayer, audit_layer
from .shares import SharesNoise, audit_shares

__all__ = [
    "Finding",
    "MembershipFinding",
    "PrivateLayer",
    "PrivateStrategy",
    "PrivateTrainer",
    "SharesNoise",
    "audit_layer",
    "audit_shares",
    "audit_strategy",
    "audit_trainer",
    "canary_task",
    "infer_membership",
]
