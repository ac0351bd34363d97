"""How metrics are ordered and written wherever a person reads them."""

import math
from collections.abc import Iterable
from typing import Any

FIRST = ("accuracy", "loss")
"""Shown before all others."""

HIGHER_IS_BETTER = ("accuracy",)
"""Metrics of which the best value of a run is worth telling."""


def in_order(names: Iterable[str]) -> list[str]:
    """Return metric names in the order to show them.

    >>> in_order(["recall", "loss", "accuracy"])
    ['accuracy', 'loss', 'recall']
    """
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def as_number(value: Any) -> float:
    """Return an event's value as a float; what is no number is NaN.

    >>> as_number("-Infinity"), as_number(3)
    (-inf, 3.0)
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def show_number(value: Any) -> str:
    """Return a metric as text: four decimals, or four digits where those would be zeros or too many.

    >>> [show_number(v) for v in (0.97123, 1, 0.00001234, 123456.7, "NaN")]
    ['0.9712', '1.0000', '1.234e-05', '1.235e+05', 'nan']
    """
    number = as_number(value)
    if math.isfinite(number) and number != 0 and not 1e-3 <= abs(number) < 1e5:
        return f"{number:.3e}"
    return f"{number:.4f}"
