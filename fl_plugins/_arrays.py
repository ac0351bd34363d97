"""Flower ``Array`` ⇄ NumPy array, exactly, and without the copies that ``Array.numpy()`` makes.

An ``Array`` carries an ``.npy`` file. Its header is parsed here, strictly and without pickle, and the rest
is viewed in place. Flower brings bfloat16 back as raw ``V2`` bytes; ``Array.dtype`` still has the name.
"""

import ast
import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from .dtypes import EXTENDED, DType, supported
from .errors import StructureError
from .training import NamedArrays

_STYPE = "numpy.ndarray"
_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 10_000


def to_ndarray(array: Array) -> NDArray[Any]:
    """Return a read-only view of ``array`` over its own bytes.

    Guarantees
    ----------
    Shape, dtype and every bit are the sender's, bfloat16 and 8-bit floats included. Nothing is copied,
    except that a big-endian array is copied once into native order. A Fortran-ordered array stays so.

    Raises
    ------
    StructureError
        If the bytes are not a well-formed ``.npy`` file of exactly the shape and dtype that ``array``
        declares (truncated, oversized, pickled, object, text, complex, …).
    """
    if array.stype != _STYPE:
        raise StructureError(f"serialization {array.stype!r} is not supported; send {_STYPE!r} arrays.")
    declared = supported(array.dtype, owner="an Array")
    descr, fortran_order, shape, offset = _parse_header(array.data)
    stored = _stored_dtype(descr, declared)
    if shape != tuple(array.shape):
        raise StructureError(f"the Array declares shape {tuple(array.shape)} but its data has {shape}.")
    size = len(array.data) - offset
    needed = stored.itemsize
    for length in shape:
        needed *= length  # Python integers: a hostile shape cannot overflow
    if size != needed:
        raise StructureError(f"shape {shape} of {declared} needs {needed} bytes of data but {size} came.")
    order: Literal["F", "C"] = "F" if fortran_order else "C"
    try:
        view: NDArray[Any] = np.ndarray(shape, stored, buffer=array.data, offset=offset, order=order)
    except (ValueError, OverflowError) as error:  # an empty array with an absurd shape
        raise StructureError(f"shape {shape} of {declared} cannot be an array: {error}.") from error
    if declared == np.bool_ and view.size and view.view(np.uint8).max() > 1:
        raise StructureError("a bool array may hold only the bytes 0 and 1.")
    if stored != declared:
        view = view.astype(declared)
        view.flags.writeable = False
    return view


def from_ndarray(values: Any) -> Array:
    """Return ``values`` (a NumPy or JAX array, or a scalar) as an ``Array``, with one copy.

    Guarantees
    ----------
    ``to_ndarray`` gives the same bits back. Memory order and byte order are normalised; stock Flower
    reads the result as well (bfloat16 as raw ``V2``, as from its own ``Array``).

    Raises
    ------
    StructureError
        If the dtype is not a float or counting dtype.
    """
    source = np.asarray(values)
    dtype = supported(source.dtype, owner="an array")
    packed = np.ascontiguousarray(source, dtype=dtype)
    descr = f"|V{dtype.itemsize}" if dtype.name in EXTENDED else dtype.str
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": source.shape}
    )
    return Array(
        dtype=dtype.name,
        shape=source.shape,
        stype=_STYPE,
        data=b"".join([header.getvalue(), packed.reshape(-1).view(np.uint8).data]),
    )


def to_named(record: ArrayRecord) -> NamedArrays:
    """Return read-only views of every array in ``record``, in the record's order.

    Raises
    ------
    StructureError
        As :func:`to_ndarray`, with the key in front.
    """
    named: NamedArrays = {}
    for key, array in record.items():
        try:
            named[key] = to_ndarray(array)
        except StructureError as error:
            raise StructureError(f"array {key!r}: {error}") from error
    return named


def from_named(arrays: Mapping[str, Any]) -> ArrayRecord:
    """Return ``arrays`` as an ``ArrayRecord`` in the same order.

    Raises
    ------
    StructureError
        As :func:`from_ndarray`, with the key in front.
    """
    record = ArrayRecord()
    for key, values in arrays.items():
        try:
            record[key] = from_ndarray(values)
        except StructureError as error:
            raise StructureError(f"array {key!r}: {error}") from error
    return record


def _parse_header(data: bytes) -> tuple[str, bool, tuple[int, ...], int]:
    """Return dtype text, Fortran order, shape and where the values begin."""
    version = data[6] if len(data) > 6 else 0
    start = 10 if version == 1 else 12
    if data[:6] != _MAGIC or version not in (1, 2, 3) or len(data) < start:
        raise StructureError("the data is not an .npy file; send numpy.ndarray arrays.")
    length = int.from_bytes(data[8:start], "little")
    if length > min(_MAX_HEADER_BYTES, len(data) - start):
        raise StructureError(f"the .npy header claims {length} bytes; it is truncated or too long.")
    return *_parse_text(data[start : start + length]), start + length


@lru_cache(maxsize=1024)
def _parse_text(text: bytes) -> tuple[str, bool, tuple[int, ...]]:
    """Return what :func:`_parse_header` does of the header's text: the same one in every client's reply."""
    try:
        header = ast.literal_eval(text.decode("latin1").strip())
        descr, fortran_order, shape = header["descr"], header["fortran_order"], header["shape"]
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
        raise StructureError("the .npy header does not parse.") from error
    if not (
        isinstance(descr, str)
        and isinstance(fortran_order, bool)
        and isinstance(shape, tuple)
        and all(type(length) is int and length >= 0 for length in shape)
        and len(shape) <= 32
    ):
        raise StructureError(f"the .npy header {str(header)[:120]!r} does not describe a plain array.")
    return descr, fortran_order, shape


def _stored_dtype(descr: str, declared: DType) -> DType:
    """Return the dtype of the bytes: ``declared``, perhaps in the other byte order."""
    if declared.name in EXTENDED:
        # Raw bytes ("|V2"), or what np.save makes of the one 8-bit float of kind "f" ("<f1").
        matches = descr[1:] in (f"V{declared.itemsize}", declared.str[1:])
        stored = declared
    else:
        matches = descr[:1] in "<>|=" and descr[1:] == declared.str[1:]
        orders = {"<": declared.newbyteorder("<"), ">": declared.newbyteorder(">")}
        stored = orders.get(descr[:1], declared)
    if not matches:
        raise StructureError(f"the Array declares dtype {declared} but its data has {descr[:40]!r}.")
    return stored
