"""The idx format of MNIST: big-endian, plain or gzip."""

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_plugins.errors import DataError

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path) -> NDArray[Any]:
    """Return the array in an idx file; ``.gz`` is unpacked.

    Raises
    ------
    DataError
        If there is no such file or it is not whole.
    """
    try:
        packed = path.read_bytes()
        content = gzip.decompress(packed) if path.suffix == ".gz" else packed
    except (OSError, EOFError) as error:
        raise DataError(f"idx: {path} cannot be read ({error}); check the path.") from error
    rank = content[3] if len(content) >= 4 else 0
    start = 4 + 4 * rank
    if len(content) < start or content[:2] != b"\0\0" or content[2] not in _DTYPES or rank == 0:
        raise DataError(f"idx: {path} does not begin as an idx file does; give MNIST's own files.")
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    dtype = np.dtype(_DTYPES[content[2]])
    if len(content) - start != math.prod(shape) * dtype.itemsize:
        raise DataError(
            f"idx: {path} has {len(content) - start} bytes of data but its header says {shape} of "
            f"{dtype.itemsize}; download it again."
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
