"""Which stage of an attempt this node has answered, on its own disk: one saved session never answers twice.

A SuperNode stores a ClientApp's state *after* the reply has left (flwr 1.41, ``run_clientapp.py``). A server
that has two messages of one stage waiting, or a process that dies in between, would otherwise meet the same
saved session again, and two answers to one unmasking can give both secrets of a node. So the stage is claimed
here first, under a lock; the file lives as long as the session, and where there is none nothing is answered.

The folder is ``secagg-state`` of the node's own config, or one of this user's below the temporary folder.
"""

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_plugins.errors import StageError
from fl_plugins.secagg import Stage
from fl_plugins.secure_round import LAYER, STAGES

STATE = "secagg-state"

_KEPT_S = 7 * 24 * 3600.0
"""Files of attempts that came to no end are removed after so long."""


class Answered:
    """The file of one attempt on one node."""

    def __init__(self, node_config: Mapping[str, Any], *, node: int, sid: bytes, layer: str = LAYER) -> None:
        self._layer = layer
        given = node_config.get(STATE)
        default = Path(tempfile.gettempdir(), f"fl-plugins-{os.getuid()}-secagg")
        self._folder = Path(str(given)) if given else default
        self._path = self._folder / f"{sid.hex()}-{node}"

    def begin(self) -> None:
        """Make the file; remove those of long ago.

        Raises
        ------
        StageError
            If this attempt was begun before, or the folder is not this user's alone.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self._folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise StageError(
                f"{self._layer}: the folder {STATE} is not one that only this node's user can write; name "
                "another."
            )
        for old in self._folder.iterdir():
            try:
                if old.stat().st_mtime < time.time() - _KEPT_S:
                    old.unlink()
            except FileNotFoundError:
                pass  # another process's, and it has just ended
        try:
            with self._path.open("x", encoding="ascii") as file:
                file.write("0")
        except FileExistsError:
            raise StageError(f"{self._layer}: this attempt was begun before and is never repeated.") from None

    def claim(self, stage: Stage) -> None:
        """Note that the stage is answered now.

        Raises
        ------
        StageError
            If it or a later one was, or nothing is known of this attempt.
        """
        number = STAGES.index(stage) if stage in STAGES else 0
        try:
            with self._path.open("r+", encoding="ascii") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                last = int(file.read())
                if number > last:
                    file.seek(0)
                    file.write(str(number))
                    file.flush()
                    os.fsync(file.fileno())
                    return
        except (OSError, ValueError):
            pass
        raise StageError(
            f"{self._layer}: stage {stage} of this attempt was answered before, or this node does not know "
            "the attempt; nothing was sent."
        )

    def forget(self) -> None:
        """Remove the file: nothing of this attempt is answered any more."""
        self._path.unlink(missing_ok=True)
