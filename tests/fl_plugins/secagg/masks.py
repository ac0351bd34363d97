"""A key's mask by itself: the product only ever adds and subtracts masks."""

from typing import Any

import numpy as np

from fl_plugins.secagg.prg import RING_DTYPES, apply_masks


def mask_words(key: bytes, length: int, num_bits: int) -> Any:
    """Return the first ``length`` words of a key's mask."""
    out = np.zeros(length, RING_DTYPES[num_bits])
    apply_masks(out, [key], [])
    return out
