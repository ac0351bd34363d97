"""Which process is ours: its pid *and* when it started, since pids are given out again.

The moment is read from the system and compared as text: on Linux the clock ticks since boot, with the boot's
id, elsewhere what ``ps`` says (to the second).
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Started:
    """One process of one moment."""

    pid: int
    moment: str

    def is_running(self) -> bool:
        """Whether this very process runs; neither a zombie nor another process with its pid does."""
        return moment_of(self.pid) == self.moment


def moment_of(pid: int) -> str | None:
    """Return when the process with that pid started, or ``None`` if none runs."""
    if sys.platform != "linux":
        shown = subprocess.run(  # noqa: S603
            ["ps", "-o", "stat=,lstart=", "-p", str(pid)],  # noqa: S607  # its folder differs between systems
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split(maxsplit=1)
        return shown[1].strip() if len(shown) == 2 and not shown[0].startswith("Z") else None
    try:
        # After the command's name, which may hold anything, parentheses too: state is field 3, starttime 22.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def write_pid(path: Path, pid: int) -> None:
    """Write which process ``pid`` is now; a reader sees the file whole or not at all.

    A process that has ended already is written as one that never runs.
    """
    started = Started(pid=pid, moment=moment_of(pid) or "ended")
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(asdict(started)), encoding="utf-8")
    draft.replace(path)


def read_pid(path: Path) -> Started | None:
    """Return what :func:`write_pid` wrote, or ``None`` if there is no such file or it does not read."""
    with suppress(OSError, ValueError, TypeError):
        return Started(**json.loads(path.read_text(encoding="utf-8")))
    return None
