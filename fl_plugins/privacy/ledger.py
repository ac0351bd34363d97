"""What was spent on one population, over all its runs: append-only, hash-chained JSON lines.

====================  =====================================================================================
line                  fields beside ``seq``, ``previous`` (the hash of the line before) and ``hash``
====================  =====================================================================================
``opened``            schema, population, unit, adjacency
``run``               run, config (SHA-256 of its privacy configuration)
``release``           release: the definition that following lines call by its number, ``seq``
``reserved``          run, round, release (its number), count; written and flushed *before* messages leave
``committed``         reserved (its number): the result was made public
====================  =====================================================================================

**Guarantees.** A reservation is on disk before :meth:`Ledger.reserve` returns, and counts as spent whatever
happens then: a crash never makes ε smaller. A last line without its newline was being written by a process
that was killed; which reservation it would have been is unknown, so the costliest counts once more: the
largest count so far, of the release that costs most of those accounted alike (of each, if none does).
Any other line that does not parse, is missing or was changed is refused. One process at a time may write.

Whoever can write the file can also write a new chain from its beginning, or cut whole lines off its end: the
chain finds damage and edits, not an owner who forges. Keep ``head`` elsewhere to find that too.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from fl_plugins.checks import check_int
from fl_plugins.errors import ConfigError, DataError

from .accounting import Accountant, Budget, Report, costliest
from .releases import Release
from .units import NeighborRelation

SCHEMA = 1
_START = "0" * 64

Line = dict[str, Any]


class Ledger:
    """The open ledger of a population; a context manager that holds the file's lock.

    Parameters
    ----------
    path : Path
        The file; made if it is missing.
    population : str
        Whose data: ε adds up over all runs on them, so one population has one ledger.
    relation : NeighborRelation
        What every release in it protects.

    Raises
    ------
    ConfigError
        If another process has it open, or it is of another population or relation.
    DataError
        If it is damaged.
    """

    def __init__(self, path: Path, *, population: str, relation: NeighborRelation) -> None:
        self.path = path
        self.population, self.relation = population, relation
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("a+b", buffering=0)
        try:
            self._open()
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return a ledger as it is now, to report of; nothing can be charged to it, and a run may go on.

        A last line that is not whole, torn or being written, counts as in the class.

        Raises
        ------
        DataError
            If it is damaged.
        """
        ledger = cls.__new__(cls)
        ledger.path = path
        ledger.population, ledger.relation = read_relation(path)
        with path.open("rb", buffering=0) as file:
            ledger._file = file
            if ledger._replay(file.read()):
                for release in costliest(ledger._definitions):
                    ledger._accountant.compose(release, ledger._largest_count)
        return ledger

    def begin(self, run: str, config: Mapping[str, Any]) -> None:
        """Say that ``run`` starts or goes on with this privacy configuration.

        Raises
        ------
        ConfigError
            If it went by another configuration before.
        """
        digest = hashlib.sha256(_canonical(config)).hexdigest()
        known = self._runs.get(run)
        if known is None:
            self._append({"line": "run", "run": run, "config": digest})
        elif known != digest:
            raise ConfigError(
                f"privacy ledger {self.path}: run {run!r} had another privacy configuration; resume it with "
                "the same one, or give the changed run another name."
            )

    def would_exceed(self, release: Release, budget: Budget) -> bool:
        """Whether one more release would spend more than ``budget`` on this population."""
        return self._accountant.would_exceed(release, budget)

    def reserve(self, release: Release, *, run: str, number: int, count: int = 1) -> int:
        """Charge releases of round ``number`` and return the reservation, once it is on disk.

        Raises
        ------
        ConfigError, ConfigTypeError
            If the run was not begun, or a number is not a whole one that can be charged.
        ContractError
            If the release is for another unit or adjacency.
        OSError
            If the disk refuses; do not send anything then. The ledger is closed.
        """
        if run not in self._runs:
            raise ConfigError(f"privacy ledger {self.path}: run {run!r} was not begun; call begin() first.")
        # Before a byte is written: what cannot be charged cannot be read again either.
        check_int("privacy ledger", "count", count, minimum=1)
        self._accountant.check_relation(release)
        if release not in self._definitions:
            self._append({"line": "release", "release": release.to_json()})
        definition = self._definitions[release]
        return self._append(
            {"line": "reserved", "run": run, "round": number, "release": definition, "count": count}
        )

    def commit(self, reservation: int) -> None:
        """Note that what was reserved has been made public.

        Raises
        ------
        ConfigError
            If there is no such reservation, or it was committed already.
        """
        if reservation not in self._pending:
            raise ConfigError(f"privacy ledger {self.path}: {reservation} is no pending reservation.")
        self._append({"line": "committed", "reserved": reservation})

    def report(self, delta: float, *, pld: bool = True) -> Report:
        """Return what was spent, reservations without a commit included."""
        return self._accountant.report(delta, pld=pld)

    @property
    def accountant(self) -> Accountant:
        """Everything that was reserved, composed."""
        return self._accountant

    @property
    def pending(self) -> int:
        """How many reservations have no commit: rounds under way, or runs that crashed."""
        return len(self._pending)

    @property
    def head(self) -> str:
        """The hash of the last line, which stands for the whole file."""
        return self._previous

    def close(self) -> None:
        """Let other processes open the ledger."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """Lock and replay the file."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"privacy ledger {self.path}: another process has it open; two runs on one population must "
                "take turns, or each could spend what the other has."
            ) from None
        self._file.seek(0)
        data = self._file.read()
        torn = self._replay(data)
        if torn:
            os.ftruncate(self._file.fileno(), len(data) - len(torn))
        if self._seq == 0:
            head = {"schema": SCHEMA, "population": self.population}
            relation = {"unit": self.relation.unit.value, "adjacency": self.relation.adjacency.value}
            self._append({"line": "opened", **head, **relation})
            _sync_folder(self.path.parent)
        elif torn:
            line = {"line": "reserved", "run": "", "round": 0, "count": self._largest_count, "torn": True}
            for release in costliest(self._definitions):
                self._append({**line, "release": self._definitions[release]})

    def _replay(self, data: bytes) -> bytes:
        """Follow all whole lines, and return what of a last one is there."""
        self._seq, self._previous = 0, _START
        self._runs: dict[str, str] = {}
        self._definitions: dict[Release, int] = {}
        self._by_number: dict[int, Release] = {}
        self._pending: set[int] = set()
        self._largest_count = 1
        self._accountant = Accountant(self.relation)
        whole, newline, torn = data.rpartition(b"\n")
        for raw in (whole + newline).splitlines():
            self._apply(_parse(self.path, raw, self._seq, self._previous))
        if torn and not self._by_number:
            raise DataError(
                f"privacy ledger {self.path}: it ends in the middle of a line and defines no release; what "
                "was spent is unknown: restore the file, or delete it if no run has ever trained with it."
            )
        return torn

    def _append(self, fields: Line) -> int:
        """Write one line, wait for the disk, apply it; return its number."""
        line = {"seq": self._seq, "previous": self._previous, **fields}
        line["hash"] = hashlib.sha256(_canonical(line)).hexdigest()
        raw = _canonical(line) + b"\n"
        try:
            written = self._file.write(raw)
            if written != len(raw):
                raise OSError(f"privacy ledger {self.path}: only {written} of {len(raw)} bytes were written")
            os.fsync(self._file.fileno())
        except OSError:
            self.close()  # what is on disk now is unknown: a further line might not follow it
            raise
        self._apply(line)
        return int(line["seq"])

    def _apply(self, line: Line) -> None:
        """Follow one verified line."""
        kind = line["line"]
        if kind == "opened":
            self._check_head(line)
        elif kind == "run":
            self._runs[line["run"]] = line["config"]
        elif kind == "release":
            release = Release.from_json(line["release"])
            self._definitions[release] = line["seq"]
            self._by_number[line["seq"]] = release
        elif kind == "reserved":
            self._accountant.compose(self._by_number[line["release"]], line["count"])
            self._pending.add(line["seq"])
            self._largest_count = max(self._largest_count, line["count"])
        elif kind == "committed":
            self._pending.remove(line["reserved"])
        else:
            raise DataError(
                f"privacy ledger {self.path}: line {line['seq'] + 1} is of the unknown kind {kind!r}."
            )
        self._seq, self._previous = line["seq"] + 1, line["hash"]

    def _check_head(self, line: Line) -> None:
        """Refuse the ledger of another population."""
        found = (line["schema"], line["population"], line["unit"], line["adjacency"])
        wanted = (SCHEMA, self.population, self.relation.unit.value, self.relation.adjacency.value)
        if found != wanted:
            raise ConfigError(
                f"privacy ledger {self.path}: it is for (schema, population, unit, adjacency) = {found}, not "
                f"{wanted}; an ε of one does not add to another's: use another file."
            )


def read_relation(path: Path) -> tuple[str, NeighborRelation]:
    """Return the population and the relation of an existing ledger.

    Raises
    ------
    DataError
        If its first line is no ledger's.
    """
    with path.open("rb") as file:
        line = _parse(path, file.readline().rstrip(b"\n"), 0, _START)
    return line["population"], NeighborRelation.of(unit=line["unit"], adjacency=line["adjacency"])


def _parse(path: Path, raw: bytes, seq: int, previous: str) -> Line:
    """Return one line if it is the next of the chain."""
    try:
        line = json.loads(raw)
        claimed = line["hash"]
        body = {key: value for key, value in line.items() if key != "hash"}
        good = (
            hashlib.sha256(_canonical(body)).hexdigest() == claimed
            and line["previous"] == previous
            and line["seq"] == seq
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise DataError(
            f"privacy ledger {path}: line {seq + 1} was changed, or one before it was removed; what was "
            "spent is unknown: restore the file, or treat this population's budget as used up."
        )
    return dict(line)


def _canonical(value: Mapping[str, Any]) -> bytes:
    """Return the one JSON text that a value has here."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _sync_folder(folder: Path) -> None:
    """Make a new file's name durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
