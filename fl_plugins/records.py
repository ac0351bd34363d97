"""ArrayRecord ⇄ named arrays ⇄ one vector ⇄ rows of an (n, d) matrix: the public face.

=====================  ==================================================================
``to_ndarray`` …       one Flower ``Array`` or ``ArrayRecord``, exactly (bfloat16 too), no copy
``Layout``             names, shapes and dtypes, canonical by name; the vector of the floats
``UpdateRows``         reply − global for every reply, read lazily, for the aggregation kernels
``combine_integers``   the stated rule for integer and bool state
=====================  ==================================================================
"""

from ._arrays import from_named, from_ndarray, to_named, to_ndarray
from ._layout import Entry, Layout
from ._updates import UpdateRows, combine_integers

__all__ = [
    "Entry",
    "Layout",
    "UpdateRows",
    "combine_integers",
    "from_named",
    "from_ndarray",
    "to_named",
    "to_ndarray",
]
