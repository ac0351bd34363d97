"""Which array dtypes travel, and in which one they are computed with.

*Float* dtypes are averaged: float64/32/16, bfloat16 and the 8-bit floats of ``ml_dtypes``. *Counting* dtypes
(integers and bool) are state that is never averaged. Everything else (object, text, complex, extended
precision) is refused: it cannot be sent safely or has no defined aggregate.
"""

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from .errors import StructureError

DType = np.dtype[Any]

EXTENDED: dict[str, DType] = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in (
        "bfloat16",
        "float8_e3m4",
        "float8_e4m3",
        "float8_e4m3b11fnuz",
        "float8_e4m3fn",
        "float8_e4m3fnuz",
        "float8_e5m2",
        "float8_e5m2fnuz",
    )
}
"""Floats that NumPy itself does not know: an ``.npy`` file stores them as raw bytes."""

_FLOATS = {name: np.dtype(name) for name in ("float16", "float32", "float64")} | EXTENDED
_COUNTING = {
    name: np.dtype(name)
    for name in ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
}
_BY_NAME = _FLOATS | _COUNTING
_BY_CODE = {
    order + dtype.str[1:]: dtype for dtype in _BY_NAME.values() for order in "<>" if dtype.kind != "V"
}
_BY_TEXT = _BY_NAME | _BY_CODE
_BY_DTYPE = {dtype: dtype for dtype in _BY_NAME.values()}


def supported(dtype: Any, *, owner: str) -> DType:
    """Return ``dtype`` in native byte order.

    Parameters
    ----------
    dtype : dtype or str
        A NumPy dtype or its text (``"float32"``, ``">f4"``, ``"bfloat16"``); nothing is evaluated.
    owner : str
        What has this dtype, for the message.

    Raises
    ------
    StructureError
        If it is not one of the float or counting dtypes.
    """
    # A dtype's text is made anew each time, and a round asks thousands of times.
    known: DType | None = _BY_DTYPE.get(dtype) if isinstance(dtype, np.dtype) else None
    found = known or _BY_TEXT.get(str(dtype))
    if found is None:
        raise StructureError(
            f"{owner}: dtype {str(dtype)[:40]!r} is not supported; use one of {', '.join(_BY_NAME)}."
        )
    return found


def is_float(dtype: Any) -> bool:
    """Whether arrays of ``dtype`` are averaged (false for integers, bool and everything refused).

    >>> is_float("bfloat16"), is_float("int32"), is_float(np.longdouble)
    (True, False, False)
    """
    name: str = np.dtype(dtype).newbyteorder("=").name
    return name in _FLOATS


def compute_dtype(dtypes: Iterable[Any]) -> DType:
    """Return float64 if any of ``dtypes`` is float64, else float32.

    >>> compute_dtype([np.float16, np.float32]), compute_dtype([np.float32, np.float64])
    (dtype('float32'), dtype('float64'))
    """
    return np.dtype(np.float64 if any(np.dtype(dtype) == np.float64 for dtype in dtypes) else np.float32)
