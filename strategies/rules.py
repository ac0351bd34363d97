"""A strategy's rules beside their formula: for which cohort, what they remember, how they are described."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from fl_plugins.aggregation.core import Aggregator, CohortRule, Stateful
from fl_plugins.errors import ConfigError, ConfigTypeError, PreconditionError, StructureError
from fl_plugins.records import Layout
from fl_plugins.training import NamedArrays

Role = Literal["aggregator", "fallback"]

_PREFIXES: dict[Role, str] = {"aggregator": "aggregator/", "fallback": "fallback/"}
"""Where a checkpoint keeps the state of a rule that remembers something; anything else is the optimizer's."""


@dataclass
class RuleState:
    """What the rules want back in the next round, as a checkpoint keeps it."""

    arrays: NamedArrays = field(default_factory=dict)

    @classmethod
    def split(cls, state: NamedArrays) -> tuple[Self, NamedArrays]:
        """Return the rules' part of a strategy's state, and the rest."""
        prefixes = tuple(_PREFIXES.values())
        rules = {key: value for key, value in state.items() if key.startswith(prefixes)}
        return cls(rules), {key: value for key, value in state.items() if key not in rules}

    def of(self, role: Role) -> NamedArrays:
        """Return one rule's state."""
        prefix = _PREFIXES[role]
        return {
            key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)
        }

    def keep(self, role: Role, state: Mapping[str, Any]) -> None:
        """Take up one rule's state of this round."""
        self.arrays.update({f"{_PREFIXES[role]}{key}": value for key, value in state.items()})

    def check(self, layout: Layout, rules: Mapping[Role, Aggregator | None]) -> None:
        """Raise ``StructureError`` unless the state fits the rules and the model; none at all fits too."""
        for role, rule in rules.items():
            given = self.of(role)
            expected: NamedArrays = {}
            if isinstance(rule, Stateful):
                expected = rule.initial_state(layout.size, layout.compute_dtype)
            if given and _forms(given) != _forms(expected):
                raise StructureError(
                    f"strategy: the saved state of its {role} ({', '.join(sorted(given))}) is not that of "
                    f"{rule!r} for this model; resume with the same rule and model."
                )


def for_cohort(rule: Aggregator, size: int) -> Aggregator:
    """Return the rule for a cohort of ``size``: a part of it is fixed now, not by who answers."""
    return rule.for_cohort(size) if isinstance(rule, CohortRule) else rule


def check_fallback(fallback: object, *, on_shortfall: str) -> None:
    """Check the rule that is to stand in, if there is one.

    Raises
    ------
    ConfigTypeError
        If it is not a rule.
    ConfigError
        If the run ends where it would stand in.
    """
    if fallback is not None and not isinstance(fallback, Aggregator):
        raise ConfigTypeError(f"strategy: fallback={fallback!r}, but it is a rule, for example median().")
    if fallback is not None and on_shortfall == "raise":
        raise ConfigError(
            "strategy: on_shortfall='raise' ends the run where fallback would stand in; give one of them."
        )


def check_model(layout: Layout, arrays: NamedArrays) -> None:
    """Check that there is something to aggregate, before a client trains.

    Raises
    ------
    StructureError
        If no array is floating point and has elements.
    """
    if layout.size == 0:
        raise StructureError(
            f"strategy: the model has no float array to aggregate (arrays: {', '.join(arrays) or 'none'}); "
            "give initial arrays that training changes."
        )


def rule_or_fallback(
    rule: Aggregator, fallback: Aggregator | None, *, asked: int, accepted: int
) -> tuple[Role, Aggregator, str]:
    """Return who combines ``accepted`` updates of a cohort of ``asked``, and why it is not ``rule``.

    Raises
    ------
    PreconditionError
        If neither can work on so few.
    """
    try:
        rule.check(accepted)
    except PreconditionError as error:
        if fallback is None:
            raise
        stand_in = for_cohort(fallback, asked)
        stand_in.check(accepted)
        return "fallback", stand_in, str(error)
    return "aggregator", rule, ""


def describe_rule(rule: Aggregator) -> str:
    """Return a rule's ``repr``, or its attributes if it has none of its own: addresses change every time."""
    if type(rule).__repr__ is not object.__repr__:
        return repr(rule)
    attributes = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(rule).items()))
    return f"{type(rule).__name__}({attributes})"


def _forms(arrays: NamedArrays) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shape and dtype by key."""
    return {key: (value.shape, value.dtype) for key, value in arrays.items()}
