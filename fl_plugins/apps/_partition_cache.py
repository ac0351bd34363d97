"""Partitions that were loaded once in this process, up to a number of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from ..training import ClientData, Dataset


class PartitionCache:
    """Keeps the partitions used last, as many as fit; safe to use from several threads.

    Parameters
    ----------
    max_bytes : int
        Bytes of arrays to keep. One partition that is larger than that is returned, but not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, ClientData] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def get(self, key: Hashable, load: Callable[[], ClientData]) -> ClientData:
        """Return the partition of ``key``, loaded now if it is not kept; what raises is not remembered."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        data = load()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = data
                self.num_bytes += size_of(data)
            while self.num_bytes > self._max_bytes:
                _, dropped = self._kept.popitem(last=False)
                self.num_bytes -= size_of(dropped)
        return data


def size_of(data: ClientData | Dataset) -> int:
    """Return the bytes of the arrays."""
    if isinstance(data, ClientData):
        return size_of(data.train) + size_of(data.validation)
    return int(data.x.nbytes + data.y.nbytes)
