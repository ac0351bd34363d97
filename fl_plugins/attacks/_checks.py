"""What the attacks' arguments have to be."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ConfigTypeError, PreconditionError, ReplyError, StructureError


def honest_updates(honest: NDArray[Any], *, attack: str, minimum: int = 1) -> NDArray[np.float64]:
    """Return honest updates ``(m, d)`` as float64, checked.

    Raises
    ------
    StructureError
        If it is not an ``(m, d)`` array of floats with d >= 1.
    PreconditionError
        If m is below ``minimum``.
    ReplyError
        If a row holds NaN or Inf.
    """
    given = np.asarray(honest)
    if given.ndim != 2 or given.shape[1] == 0 or not _is_float(given.dtype):
        raise StructureError(
            f"{attack}: honest updates have shape {given.shape} and dtype {given.dtype} but an (m, d) array "
            "of floats with d >= 1 is needed; flatten each client's update into one row."
        )
    if len(given) < minimum:
        raise PreconditionError(
            f"{attack}: m={len(given)} honest updates but m >= {minimum} is needed; add honest clients."
        )
    values = given.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if bad.size:
        raise ReplyError(f"{attack}: honest row {bad[0]} is not finite; lower the learning rate.")
    return values


def check_count(value: int, *, attack: str, name: str = "num_byzantine", minimum: int = 0) -> None:
    """Raise unless ``value`` is an int >= ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigTypeError(f"{attack}: {name}={value!r} must be an int; give a whole number.")
    if value < minimum:
        raise ConfigError(f"{attack}: {name}={value} must be >= {minimum}; raise it.")


def check_number(value: float, *, attack: str, name: str, minimum: float | None = None) -> None:
    """Raise unless ``value`` is a finite number, and >= ``minimum`` if there is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigTypeError(f"{attack}: {name}={value!r} must be a number; give an int or a float.")
    if not math.isfinite(value) or (minimum is not None and value < minimum):
        rule = "finite" if minimum is None else f"finite and >= {minimum:g}"
        raise ConfigError(f"{attack}: {name}={value!r} must be {rule}; choose such a number.")


def copies(row: NDArray[Any], num_byzantine: int, *, like: NDArray[Any]) -> NDArray[Any]:
    """Return ``num_byzantine`` equal rows in ``like``'s dtype; what it cannot hold becomes infinite."""
    with np.errstate(over="ignore"):
        return np.repeat(row[None].astype(np.asarray(like).dtype), num_byzantine, axis=0)


def _is_float(dtype: np.dtype[Any]) -> bool:
    """Whether ``dtype`` is a float, bfloat16 (NumPy's kind V) included."""
    return dtype.kind == "f" or dtype.name in ("bfloat16", "float16")
