"""Partitions are loaded once per process, as long as they fit."""

import numpy as np
import pytest

from fl_plugins.apps._partition_cache import PartitionCache, size_of
from fl_plugins.errors import DataError
from fl_plugins.training import ClientData, Dataset


def _data(num_bytes: int) -> ClientData:
    half = Dataset(np.zeros((1, num_bytes // 2 - 8), np.uint8), np.zeros(1, np.int64))
    return ClientData(half, half)


class _Loader:
    """Loads partitions of 100 bytes and counts."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def get(self, cache: PartitionCache, number: int, num_bytes: int = 100) -> ClientData:
        def load() -> ClientData:
            self.loaded.append(number)
            return _data(num_bytes)

        return cache.get(number, load)


def test_what_fits_is_loaded_once() -> None:
    cache, loader = PartitionCache(1000), _Loader()
    first = loader.get(cache, 1)
    assert all(loader.get(cache, number) for number in range(10))
    assert loader.get(cache, 1) is first
    assert loader.loaded == [1, 0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert cache.num_bytes == 1000


def test_the_bound_holds_and_those_used_last_are_kept() -> None:
    cache, loader = PartitionCache(250), _Loader()
    for number in (1, 2, 1, 3, 1, 2):
        loader.get(cache, number)
        assert cache.num_bytes <= 250
    assert loader.loaded == [1, 2, 3, 2]


def test_a_partition_that_never_fits_is_returned_all_the_same() -> None:
    cache, loader = PartitionCache(250), _Loader()
    assert size_of(loader.get(cache, 1, num_bytes=300)) == 300
    assert cache.num_bytes == 0


def test_a_failure_is_not_remembered() -> None:
    cache = PartitionCache(250)

    def fail() -> ClientData:
        raise DataError("not yet")

    with pytest.raises(DataError):
        cache.get(1, fail)
    assert size_of(cache.get(1, lambda: _data(100))) == 100
