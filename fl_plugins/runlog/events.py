"""One run's events as JSON lines: what happened, when, and to whom.

Every line is one object with ``schema`` (1), ``event`` and ``time`` (unix seconds), and the fields of its
type. Types and their fields are frozen; a field that the writer does not know is null, and more fields may
stand beside these.

======================  ===================================================================================
``run_started``         strategy, client, task, attack, num_rounds, seed, resumed_from (a round), versions
``round_started``       round, attempt (from 1), sampled (client names), available (how many nodes)
``evaluation_started``  the same, for evaluation at the clients
``reply``               round, phase (``train`` or ``evaluate``), client, node, seconds,
                        status (``accepted``, ``quarantined`` or ``failed``), reason
``missing``             round, phase, clients (those that did not answer in time)
``round_retried``       round, attempt, reason
``aggregated``          round, accepted, quarantined, failed (counts), missing (client names),
                        contribution (weight by client), rule, fallback (whether it stood in)
``privacy``             round, epsilon, delta, unit, adjacency, method (of the accounting), noise_multiplier,
                        clip_norm (that was used), secure (whether ε is not void)
``secure_aggregation``  round, phase, attempt, layer, tier, cohort, threshold, survivors (counts), dropped
                        (clients by stage), clipped_fraction, reason (why an attempt gave no sum)
``fallback_used``       round, accepted, rule (that stands in), reason
``evaluated``           round, where (``server`` or ``clients``), metrics
``checkpoint_saved``    round, path
``round_finished``      round, seconds, metrics, sampled, answered, quarantined (counts)
``run_stopped``         round, reason (early stopping)
``run_finished``        rounds, seconds, metrics
``run_failed``          error
======================  ===================================================================================

A line is written with one unbuffered ``write``, so a killed process leaves at most one torn line, at the
end; it is dropped when the file is read, and cut off when a resumed run appends. Numbers that JSON does not
know are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, which ``float()`` reads back.
"""

import errno
import json
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_plugins.errors import ConfigError, DataError

SCHEMA = 1

Event = dict[str, Any]
"""One parsed line."""

FIELDS: dict[str, frozenset[str]] = {
    name: frozenset(fields.split())
    for name, fields in {
        "run_started": "strategy client task attack num_rounds seed resumed_from versions",
        "round_started": "round attempt sampled available",
        "evaluation_started": "round attempt sampled available",
        "missing": "round phase clients",
        "reply": "round phase client node seconds status reason",
        "round_retried": "round attempt reason",
        "aggregated": "round accepted quarantined failed missing contribution",
        "privacy": "round epsilon delta unit adjacency method noise_multiplier clip_norm secure",
        "secure_aggregation": "round phase attempt layer tier cohort threshold survivors dropped "
        "clipped_fraction reason",
        "fallback_used": "round accepted rule reason",
        "evaluated": "round where metrics",
        "checkpoint_saved": "round path",
        "round_finished": "round seconds metrics sampled answered quarantined",
        "run_stopped": "round reason",
        "run_finished": "rounds seconds metrics",
        "run_failed": "error",
    }.items()
}
"""Event types and the fields that each line of them has."""

TERMINAL = frozenset({"run_finished", "run_failed"})
"""Types that end a run."""


class EventLog:
    """Appends events to a file: ``log("round_started", round=1, ...)``; safe to call from any thread.

    Parameters
    ----------
    path : Path
        The file; it and its folder are made if they are missing. An existing one is continued.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(path)

    def __call__(self, event: str, /, **fields: Any) -> None:
        """Append one event; a field of its type that is not given is null.

        Raises
        ------
        ConfigError
            If there is no such type.
        """
        if event not in FIELDS:
            raise ConfigError(f"event log: {event!r} is no event type; the types are {', '.join(FIELDS)}.")
        head = {"schema": SCHEMA, "event": event, "time": time.time()}
        record = {**head, **dict.fromkeys(sorted(FIELDS[event])), **fields, **head}
        line = json.dumps(to_json(record), allow_nan=False, ensure_ascii=False) + "\n"
        data = line.encode("utf-8", errors="backslashreplace")
        with self._lock, self.path.open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            if file.write(data) != len(data):  # a full disk takes what fits, and does not say so
                file.truncate(start)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


class EventReader:
    """Reads the events of a file that is still being written.

    Parameters
    ----------
    path : Path
        The file, which may not exist yet.
    offset : int
        Bytes to skip: ``EventReader.end_of(path)`` reads only what comes from now on.
    """

    def __init__(self, path: Path, *, offset: int = 0) -> None:
        self._path = path
        self._offset = offset

    @staticmethod
    def end_of(path: Path) -> int:
        """Return the offset after the last whole line, where the next event will be written."""
        return len(_whole_lines(path.read_bytes())) if path.exists() else 0

    def poll(self) -> list[Event]:
        """Return the whole lines that were appended since the last call.

        Raises
        ------
        DataError
            If a whole line is not an event that this version can read.
        """
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            lines = _whole_lines(file.read())
        self._offset += len(lines)
        return [_parse(line, self._path) for line in lines.splitlines() if line.strip()]


def read_events(path: Path) -> list[Event]:
    """Return the events of a file, without a torn last line; a file that is missing has none.

    Raises
    ------
    DataError
        If a whole line is not an event that this version can read.
    """
    return EventReader(path).poll()


def to_json(value: Any) -> Any:
    """Return ``value`` in JSON's own types: NumPy and JAX scalars become numbers, sets sorted lists.

    Anything unknown becomes its text: a log never ends the run that it describes.

    >>> to_json({"loss": float("nan"), 3: (1, 2.5)})
    {'loss': 'NaN', '3': [1, 2.5]}
    """
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else _name_non_finite(float(value))
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((to_json(item) for item in value), key=lambda item: (str(type(item)), item))
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and JAX arrays and scalars, without importing either
        return to_json(value.tolist())
    return str(value)


def _name_non_finite(value: float) -> str:
    """Return the name that ``float()`` and other languages' parsers read back."""
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"


def _whole_lines(data: bytes) -> bytes:
    """Return ``data`` up to its last line break."""
    return data[: data.rfind(b"\n") + 1]


def _end_last_line(path: Path) -> None:
    """Cut a torn last line off, so that the next event starts on a line of its own."""
    if path.exists():
        whole = EventReader.end_of(path)
        if whole != path.stat().st_size:
            os.truncate(path, whole)


def _parse(line: bytes, path: Path) -> Event:
    """Return one line as an event."""
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        raise DataError(
            f"{path}: {line[:80]!r} is not an event; the file was damaged, or written by something else."
        )
    if event.get("schema") != SCHEMA:
        raise DataError(
            f"{path}: schema={event.get('schema')!r}, but this fl-plugins reads schema {SCHEMA}; read it "
            "with the version that wrote it, or a newer one."
        )
    return event
