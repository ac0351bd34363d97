"""Whether a block of clients is run one after another or all at once: a choice by measurement."""

import statistics
import time
from collections.abc import Callable
from typing import Literal

Mapping = Literal["loop", "vmap"]
"""How the clients of a block are run, see :mod:`clients.cohort`."""

MIN_SPEEDUP = 1.5
"""``vmap`` has to be so many times faster: only the loop gives the same bits in every cohort."""

REPEATS = 3


def choose_mapping(run: Callable[[Mapping], None], *, platform: str) -> Mapping:
    """Return which way is faster on this device; ``run(mapping)`` runs a small block to its end.

    On CPUs it is the loop, untried: only it keeps a client's bits whatever the cohort, and compiling ``vmap``
    to see takes as long as many rounds (``benchmarks/trainer.py`` times both).
    Elsewhere both are compiled and timed.
    """
    return "loop" if platform == "cpu" else measure_mapping(run)


def measure_mapping(
    run: Callable[[Mapping], None], *, clock: Callable[[], float] = time.perf_counter
) -> Mapping:
    """Return ``"vmap"`` if its median time is :data:`MIN_SPEEDUP` times shorter, else ``"loop"``."""

    def seconds(mapping: Mapping) -> float:
        run(mapping)  # compiles
        times = []
        for _ in range(REPEATS):
            start = clock()
            run(mapping)
            times.append(clock() - start)
        return statistics.median(times)

    return "vmap" if seconds("vmap") * MIN_SPEEDUP <= seconds("loop") else "loop"
