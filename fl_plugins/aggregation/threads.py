"""All cores, for kernels that spend their time in NumPy, BLAS or XLA, which let other threads run meanwhile.

BLAS runs with one thread here, in one thread of ours per core: its own threads wait for each other, and on
two cores that other programs use too the same product took a hundred times as long.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import count
from threading import Lock, Thread, local
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

S = TypeVar("S")
T = TypeVar("T")

_BLAS = Lock()
"""BLAS's number of threads belongs to the process: two that set it in turn would restore each other's."""

_HERE = local()
"""``busy`` in the threads of :func:`in_threads`."""


def in_threads(work: Callable[[S], T], items: Sequence[S], *, at_most: int | None = None) -> list[T]:
    """Return ``work(item)`` for all items, in their order, computed by one thread per core.

    There are no more threads than ``at_most``, whose memory counts. Of several errors the first item's is
    raised. Called from within ``work``, it computes where it is: the cores are taken.
    """
    if getattr(_HERE, "busy", False):
        return [work(item) for item in items]
    turn = count()
    results: list[Any] = [None] * len(items)
    errors: dict[int, BaseException] = {}

    def run() -> None:
        _HERE.busy = True
        # Items are begun in order: before a thread stops for an error, all that precede it are begun.
        while not errors and (number := next(turn)) < len(items):
            try:
                results[number] = work(items[number])
            except BaseException as error:
                errors[number] = error
        _HERE.busy = False

    most = min(_num_cores(), at_most or len(items))
    with one_blas_thread():
        others = [Thread(target=run) for _ in range(min(most, len(items)) - 1)]
        for thread in others:
            thread.start()
        run()
        for thread in others:
            thread.join()
    if errors:
        raise errors[min(errors)]
    return results


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS compute in the thread that calls it; one user at a time."""
    with _BLAS, _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> Any:
    """Return the handle on the libraries that are loaded; finding them takes milliseconds."""
    return ThreadpoolController()


def _num_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
