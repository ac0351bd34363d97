"""Poisson batches: every step, each example is in the batch with the same probability, independently."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .randomness import RandomBits

_ALIGNMENT = 8


def draw_batches(
    random: RandomBits, *, num_examples: int, sampling_rate: float, num_steps: int
) -> list[NDArray[np.int64]]:
    """Return the members of ``num_steps`` batches, drawn with 64 bits each; a batch may be empty."""
    if sampling_rate >= 1:
        return [np.arange(num_examples)] * num_steps
    threshold = np.uint64(math.floor(sampling_rate * 2.0**64))
    words = np.empty(num_examples, np.uint64)
    batches = []
    for _ in range(num_steps):
        random.fill(words)
        batches.append(np.flatnonzero(words < threshold))
    return batches


def physical_size(expected: int) -> int:
    """Return how many examples one pass computes: two standard deviations more than are expected.

    A batch that is larger takes another pass: nothing is ever cut off, and nothing compiles again.

    >>> physical_size(128), physical_size(16)
    (152, 24)
    """
    return math.ceil((expected + 2 * math.sqrt(expected)) / _ALIGNMENT) * _ALIGNMENT


def pad_batches(
    batches: Sequence[NDArray[Any]], *, num_slots: int, capacity: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the rows ``(num_slots, c)`` and their numbers ``(num_slots,)``; c is capacity · 2ᵏ, all fit."""
    while capacity < max(map(len, batches), default=0):
        capacity *= 2
    rows, counts = np.zeros((num_slots, capacity), np.int32), np.zeros(num_slots, np.int32)
    for step, batch in enumerate(batches):
        rows[step, : len(batch)] = batch
        counts[step] = len(batch)
    return rows, counts
