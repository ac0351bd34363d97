"""What was spent, on disk: append-only JSON lines, each with the hash of the line before it.

=========  =============================================================================================
kind       fields
=========  =============================================================================================
open       ``unit``, ``adjacency``, ``configuration`` (one line of text: what may be resumed with what)
reserve    ``id``, ``label``, ``release`` (see :meth:`fl_plugins.privacy.Release.to_json`)
commit     ``id``: the release was made; one that was only reserved counts all the same
=========  =============================================================================================

A line is on the disk before what it is for may happen, so a process that is killed at any moment leaves at least
what it has spent. Several processes may share a file: each reads what others have added, under a lock.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import ContractError, DataError
from .privacy import NeighborRelation, Release

SCHEMA = 1

_START = "0" * 64


class PrivacyLedger:
    """A ledger in a file, or in memory only (``path=None``).

    Parameters
    ----------
    relation : NeighborRelation
        Unit and adjacency of everything in it.
    path : Path, optional
        The file; it and its folder are made when there is something to write.

    Raises
    ------
    DataError
        If the file was changed, damaged other than by a torn last line, or written by something else.
    ContractError
        If it is for another unit or adjacency.
    """

    def __init__(self, relation: NeighborRelation, path: Path | None = None) -> None:
        self.relation, self.path = relation, path
        self.releases: dict[Release, int] = {}
        """Everything that is spent, and how often."""
        self.configuration: str | None = None
        """What the newest run said of itself."""
        self._hash, self._offset, self._next = _START, 0, 0
        if path is not None and path.exists():
            with self._locked() as file:
                self._catch_up(file)

    @property
    def num_releases(self) -> int:
        """How many releases are spent, by all runs."""
        return sum(self.releases.values())

    def open(self, configuration: str) -> None:
        """Note that a run begins or goes on."""
        self._append(
            {
                "kind": "open",
                "unit": self.relation.unit.value,
                "adjacency": self.relation.adjacency.value,
                "configuration": configuration,
            }
        )

    def refresh(self) -> None:
        """Take up what other processes have added."""
        if self.path is not None and self.path.exists():
            with self._locked() as file:
                self._catch_up(file)

    def reserve(self, release: Release, label: str) -> int:
        """Spend a release before it is made; return its id. On disk when this returns."""
        return self._append({"kind": "reserve", "label": label, "release": release.to_json()})

    def commit(self, identifier: int) -> None:
        """Note that a reserved release was made."""
        self._append({"kind": "commit", "id": identifier})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process append between a look at what is spent and the reservation that follows."""
        if self.path is None:
            yield
            return
        with self._locked(".lock"):
            self.refresh()
            yield

    def _append(self, record: dict[str, Any]) -> int:
        """Write a line, and take it up."""
        if self.path is None:
            return self._take(self._sealed(record))
        with self._locked() as file:
            self._catch_up(file)
            line = self._sealed(record)
            identifier = self._take(line)
            data = (json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n").encode()
            file.seek(self._offset)
            file.truncate()  # a torn line of a process that was killed
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            self._offset += len(data)
        return identifier

    def _sealed(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record with its place in the chain."""
        head = {"schema": SCHEMA, "time": time.time(), "previous": self._hash}
        if record["kind"] == "reserve":
            head["id"] = self._next
        return {**head, **record, "hash": _digest({**head, **record})}

    def _take(self, line: Mapping[str, Any]) -> int:
        """Take up one line that is in the chain."""
        self._hash = line["hash"]
        if line["kind"] == "open":
            relation = NeighborRelation.of(unit=line["unit"], adjacency=line["adjacency"])
            if relation != self.relation:
                raise ContractError(
                    f"privacy ledger {self.path}: it is for {relation}, but this run is for {self.relation}; their ε "
                    "do not add up. Keep one ledger for each."
                )
            self.configuration = line["configuration"]
        elif line["kind"] == "reserve":
            release = Release.from_json(line["release"])
            self.releases[release] = self.releases.get(release, 0) + 1
            self._next = int(line["id"]) + 1
        return self._next - 1

    def _catch_up(self, file: IO[bytes]) -> None:
        """Read the whole lines that were added since the last look."""
        file.seek(self._offset)
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.splitlines():
            self._take(self._checked(line))
        self._offset += len(whole)

    def _checked(self, line: bytes) -> dict[str, Any]:
        """Return a line that follows the one before it.

        Raises
        ------
        DataError
            If it does not.
        """
        try:
            record: dict[str, Any] = json.loads(line)
            digest = record.pop("hash")
            good = record["previous"] == self._hash and _digest(record) == digest
            known = record["schema"] == SCHEMA and record["kind"] in ("open", "reserve", "commit")
        except (ValueError, KeyError, TypeError, AttributeError):
            good = known = False
        if not (good and known):
            raise DataError(
                f"privacy ledger {self.path}: {line[:80]!r} does not follow from the lines before it; the file was "
                "changed or damaged. Restore it from a backup: without it nobody knows what was spent."
            )
        return {**record, "hash": digest}

    @contextmanager
    def _locked(self, suffix: str = "") -> Iterator[IO[bytes]]:
        """Open the file for this process alone."""
        assert self.path is not None
        path = self.path.with_name(self.path.name + suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


def _digest(record: Mapping[str, Any]) -> str:
    """Return the hash of a line's fields."""
    return hashlib.sha256(json.dumps(record, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
