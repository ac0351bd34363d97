"""Where the worker of a node listens: a folder of its own, named after all that must be the same to share it.

``<base>/<pid>-<start>-<key>/`` holds ``socket`` and ``lock``. The name begins with the node's process, so
that folders of nodes that have ended can be told and removed; the key is a digest of the code, the
interpreter, the import path, the node's id and configuration. A worker of anything else is at another
address: it is never asked.
"""

import hashlib
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from .lifetime import ProcessId

_MAX_BASE_CHARS = 50
"""A Unix socket's path may have about 100 characters; ours adds 50 to its base."""


@dataclass(frozen=True)
class Address:
    """The folder of one worker."""

    folder: Path
    node: ProcessId

    @property
    def socket(self) -> Path:
        """The worker's socket."""
        return self.folder / "socket"

    @property
    def lock(self) -> Path:
        """What whoever starts the worker holds."""
        return self.folder / "lock"


def address_of(
    node: ProcessId, *, node_id: int, node_config: Mapping[str, Any], path: Sequence[str] = sys.path
) -> Address:
    """Return where the worker of this node listens, for this code and this configuration."""
    scripts = str(Path(sys.executable).parent)  # a console script has its folder there, a fork has not
    same = {
        "version": __version__,
        "code": code_fingerprint(path),
        "interpreter": sys.executable,
        "path": [entry for entry in path if entry != scripts],
        "node": [node.pid, node.started, node_id],
        "node-config": dict(node_config),
    }
    key = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:20]
    return Address(base_folder() / f"{node.pid}-{node.started}-{key}", node)


def base_folder() -> Path:
    """Return the folder of all of this user's workers: ``$XDG_RUNTIME_DIR/fl-plugins``, or one in /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and len(runtime) <= _MAX_BASE_CHARS and os.path.isdir(runtime):
        return Path(runtime) / "fl-plugins"
    base = tempfile.gettempdir()
    if len(base) > _MAX_BASE_CHARS:
        base = "/tmp"  # noqa: S108  # checked below: it is ours alone, or it is not used
    return Path(base) / f"fl-plugins-{os.getuid()}"


def prepare(address: Address) -> None:
    """Make the worker's folder, for this user alone, and remove those of nodes that have ended.

    Raises
    ------
    PermissionError
        If a folder on the way belongs to somebody else, or others may use it, or it is a link.
    """
    base = address.folder.parent
    for folder in (base, address.folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        check_private(folder)
    for other in base.iterdir():
        pid, _, rest = other.name.partition("-")
        started = rest.partition("-")[0]
        if pid.isdigit() and started.isdigit() and not ProcessId(int(pid), int(started)).is_alive():
            shutil.rmtree(other, ignore_errors=True)


def check_private(folder: Path) -> None:
    """Refuse a folder that is not this user's alone."""
    status = folder.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or mode & 0o077:
        raise PermissionError(
            f"resident worker: {folder} must be a folder of user {os.getuid()} with mode 0700, but user "
            f"{status.st_uid} has it with mode {mode:o}; remove it."
        )


def code_fingerprint(path: Sequence[str] = sys.path) -> str:
    """Return a digest that changes when installed code does: ours by file, other packages by their folder.

    Installing or removing a distribution changes the time of ``site-packages``. 150 files take 1 ms.
    """
    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in ("fl_plugins", "strategies", "clients"):
        for folder, folders, files in os.walk(root / package):
            folders.sort()
            for name in sorted(files):
                if name.endswith(".py"):
                    status = os.stat(os.path.join(folder, name))
                    digest.update(f"{folder}/{name}:{status.st_mtime_ns}:{status.st_size}\n".encode())
    for entry in path:
        if Path(entry).name in ("site-packages", "dist-packages"):
            try:
                digest.update(f"{entry}:{os.stat(entry).st_mtime_ns}\n".encode())
            except OSError:
                continue
    return digest.hexdigest()
