"""What a privacy guarantee protects: whose data may change (unit), and how (adjacency).

An ε says nothing without them: the same noise has ε = 2.0 when a client may be left out and ε = 4.4 when it
may be another client. So both are required wherever a guarantee is configured, and printed wherever an ε is.

============  =========================================================================  ================
adjacency     neighbouring runs differ in                                                the sum moves by
============  =========================================================================  ================
add_remove    one unit that takes part in one of the two runs only                       ≤ 1 clip norm
zero_out      one unit whose contribution is zero in one of the two runs                 ≤ 1 clip norm
replace       one unit whose data are exchanged for any other                            ≤ 2 clip norms
============  =========================================================================  ================
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Self, TypeVar

from fl_plugins.errors import ConfigError


class Unit(StrEnum):
    """Whose data one guarantee covers: everything that a client holds, or a single record."""

    CLIENT = "client"
    RECORD = "record"


class Adjacency(StrEnum):
    """How two neighbouring data sets differ in one unit."""

    ADD_REMOVE = "add_remove"
    REPLACE = "replace"
    ZERO_OUT = "zero_out"

    @property
    def clip_norms(self) -> int:
        """How many clip norms the sum of clipped contributions moves by at most."""
        return 2 if self is Adjacency.REPLACE else 1


@dataclass(frozen=True, kw_only=True)
class NeighborRelation:
    """Unit and adjacency, which no ε is printed without.

    >>> print(NeighborRelation.of(unit="client", adjacency="add_remove"))
    unit client, adjacency add_remove
    """

    unit: Unit
    adjacency: Adjacency

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", _member(Unit, "unit", self.unit))
        object.__setattr__(self, "adjacency", _member(Adjacency, "adjacency", self.adjacency))

    @classmethod
    def of(cls, *, unit: Unit | str, adjacency: Adjacency | str) -> Self:
        """Return the relation with these names.

        Raises
        ------
        ConfigError
            If a name is none of the known ones.
        """
        return cls(unit=_member(Unit, "unit", unit), adjacency=_member(Adjacency, "adjacency", adjacency))

    def __str__(self) -> str:
        return f"unit {self.unit.value}, adjacency {self.adjacency.value}"


E_ = TypeVar("E_", Unit, Adjacency)


def _member(enum: type[E_], name: str, value: str) -> E_:
    """Return the member of that value."""
    try:
        return enum(value)
    except ValueError:
        known = ", ".join(member.value for member in enum)
        raise ConfigError(
            f"privacy: {name}={value!r}, but it must be one of {known}; a guarantee is void without it."
        ) from None
