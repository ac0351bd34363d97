"""Models as tests draw them: named arrays over all dtypes and degenerate shapes."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


def bits(values: np.ndarray) -> bytes:
    return np.ascontiguousarray(values).tobytes()


@st.composite
def models(draw) -> dict[str, np.ndarray]:
    """Named arrays of finite values over all dtypes and degenerate shapes."""
    named = {}
    for key in draw(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1, max_size=5)):
        dtype = np.dtype(
            draw(st.sampled_from(["float16", "float32", "float64", "bfloat16", "int64", "bool"]))
        )
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
        values = np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape) * 8
        named[key] = values.astype(dtype)
    return named


MODEL = {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32), "steps": np.array(1)}
