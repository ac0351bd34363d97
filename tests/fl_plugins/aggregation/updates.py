"""Updates as tests draw them."""

import numpy as np


def cohort(n: int, seed: int, d: int = 6, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)
