"""CPU time and memory of a whole process tree, sampled while it runs (Linux's /proc)."""

import bisect
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

INTERVAL_S = 0.1
MEMORY_INTERVAL_S = 1.0
"""The kernel walks a process's page tables to tell its share, which takes milliseconds."""

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Usage:
    """What was seen: CPU-seconds of the tree at unix times, and its resident memory in bytes.

    Memory is the sum of proportional set sizes: a page that k processes share counts 1/k in each.
    """

    started: float
    ended: float = 0.0
    status: int = 0
    times: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """Return the most memory seen at once."""
        return max(self.resident, default=0)

    def cpu_between(self, start: float, end: float) -> float:
        """Return CPU-seconds between two times, interpolated between samples."""
        return self._cpu_at(end) - self._cpu_at(start)

    def resident_at(self, moment: float) -> int:
        """Return the memory in the last sample before ``moment``."""
        return self.resident[max(bisect.bisect_right(self.times, moment) - 1, 0)]

    def _cpu_at(self, moment: float) -> float:
        right = min(max(bisect.bisect_left(self.times, moment), 1), len(self.times) - 1)
        before, after = self.times[right - 1], self.times[right]
        share = min(max((moment - before) / (after - before), 0.0), 1.0)
        return self.cpu[right - 1] + share * (self.cpu[right] - self.cpu[right - 1])


def run_measured(
    command: Sequence[str], *, env: Mapping[str, str], cwd: Path, log: Path, timeout_s: float
) -> Usage:
    """Run ``command`` to its end and return what its process tree used.

    After ``timeout_s`` seconds it is ended, and its status is not 0.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=dict(env), cwd=cwd, stdout=output, stderr=output)
    usage = Usage(started=time.time())
    over = threading.Event()
    sampler = threading.Thread(target=_sample, args=(process.pid, usage, over), daemon=True)
    sampler.start()
    try:
        usage.status = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        usage.status = process.wait(60) or 124
    finally:
        if process.poll() is None:
            process.terminate()
        usage.ended = time.time()
        over.set()
        sampler.join()
    return usage


def _sample(root: int, usage: Usage, over: threading.Event) -> None:
    """Look at the tree again and again; what processes used stays counted when they have ended."""
    seen: dict[int, float] = {}
    resident, looked = 0, 0.0
    while not over.is_set():
        tree = _tree(root)
        for pid, ticks in tree:
            seen[pid] = max(seen.get(pid, 0.0), ticks / _TICKS)
        if time.monotonic() - looked >= MEMORY_INTERVAL_S:
            resident, looked = sum(_proportional_bytes(pid) for pid, _ in tree), time.monotonic()
        usage.times.append(time.time())
        usage.cpu.append(sum(seen.values()))
        usage.resident.append(resident)
        over.wait(INTERVAL_S)


def _proportional_bytes(pid: int) -> int:
    """Return a process's share of the memory that it maps; 0 if it has ended."""
    try:
        lines = Path("/proc", str(pid), "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _tree(root: int) -> list[tuple[int, int]]:
    """Return ``(pid, ticks)`` of ``root`` and all below it."""
    found: dict[int, tuple[int, int]] = {}
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            text = Path("/proc", name, "stat").read_text(errors="replace")
        except OSError:
            continue  # it has just ended
        fields = text.rpartition(")")[2].split()
        pid = int(name)
        found[pid] = (pid, int(fields[11]) + int(fields[12]))
        children.setdefault(int(fields[1]), []).append(pid)
    below, frontier = [], [root]
    while frontier:
        pid = frontier.pop()
        if pid in found:
            below.append(found[pid])
        frontier += children.get(pid, [])
    return below
