"""What a layer needs and gives, as data, so that a whole stack is checked when it is built.

A rule that must see *every* client's update cannot sit behind a layer that shows only their *sum*
(secure aggregation), and a guarantee that assumes equal weights does not hold over weights that
clients claim for themselves.
"""

from dataclasses import dataclass
from enum import StrEnum


class Access(StrEnum):
    """What a rule must see of the cohort's updates."""

    EVERY_UPDATE = "every update"
    SUM = "only their sum"


class Weighting(StrEnum):
    """How much an update counts: the same for all, or by the number of examples that its client claims."""

    UNIFORM = "uniform"
    EXAMPLES = "examples"


@dataclass(frozen=True, kw_only=True)
class Contract:
    """What an aggregation needs (``access``) and how it weights (``weighting``)."""

    access: Access
    weighting: Weighting
