"""Checks of parameters that every configuration shares: type first, then range, one wording."""

import math
from typing import Any

from .errors import ConfigError, ConfigTypeError


def check_int(owner: str, name: str, value: Any, *, minimum: int) -> None:
    """Check a whole number.

    Raises
    ------
    ConfigTypeError
        If it is not an ``int`` (a ``bool`` is none).
    ConfigError
        If it is below ``minimum``.
    """
    if type(value) is not int:
        raise ConfigTypeError(f"{owner}: {name}={value!r} is a {type(value).__name__}; give a whole number.")
    if value < minimum:
        raise ConfigError(f"{owner}: {name}={value}, but it must be >= {minimum}.")


def check_number(
    owner: str, name: str, value: Any, *, minimum: float, maximum: float = math.inf, open_below: bool = False
) -> None:
    """Check a finite number in ``[minimum, maximum]``, or in ``(minimum, maximum]`` if ``open_below``.

    Raises
    ------
    ConfigTypeError
        If it is neither ``int`` nor ``float`` (a ``bool`` is none).
    ConfigError
        If it is not finite or out of range.
    """
    if type(value) not in (int, float):
        raise ConfigTypeError(f"{owner}: {name}={value!r} is a {type(value).__name__}; give a number.")
    above = value > minimum if open_below else value >= minimum
    if not (math.isfinite(value) and above and value <= maximum):
        raise ConfigError(
            f"{owner}: {name}={value}, but it must be a finite number in {'(' if open_below else '['}"
            f"{minimum:g}, {maximum:g}]."
        )
