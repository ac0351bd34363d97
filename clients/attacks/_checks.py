"""Rules that the attacks' parameters share."""

import math

from fl_plugins.errors import ConfigError, ConfigTypeError


def check_num_byzantine(attack: str, value: int) -> None:
    """Raise unless ``value`` is an int >= 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigTypeError(f"{attack}: num_byzantine={value!r} must be an int; give a whole number.")
    if value < 0:
        raise ConfigError(f"{attack}: num_byzantine={value} must be >= 0; 0 means that nobody is hostile.")


def check_finite(attack: str, name: str, value: float) -> None:
    """Raise unless ``value`` is a finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigTypeError(f"{attack}: {name}={value!r} must be a number; give an int or a float.")
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{attack}: {name}={value!r} must be finite and > 0; choose such a number.")


def check_number(attack: str, name: str, value: float, *, minimum: float | None = None) -> None:
    """Raise unless ``value`` is a finite number, and >= ``minimum`` if there is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigTypeError(f"{attack}: {name}={value!r} must be a number; give an int or a float.")
    if not math.isfinite(value) or (minimum is not None and value < minimum):
        rule = "finite" if minimum is None else f"finite and >= {minimum:g}"
        raise ConfigError(f"{attack}: {name}={value!r} must be {rule}; choose such a number.")
