"""Progress of a run, drawn from its events: plain lines in a pipe, a live bar below them on a terminal.

:func:`advance` is pure: it folds one event into a small state and says which lines to show.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from .events import Event
from .metrics import in_order, show_number

MAX_TEXT_CHARS = 300
"""Longer reasons are cut on the display; the events keep them whole."""

MAX_NAMES = 12
"""Clients named on one line."""

LOW_WEIGHT = 0.5
"""Clients whose mean weight is below so much of an equal share are named when a run has finished."""

MAX_METRICS = 4
"""Metrics on one line."""

ETA_WINDOW = 5
"""The time left is estimated from the median of so many last rounds."""


@dataclass(frozen=True, kw_only=True)
class ProgressState:
    """What the display must remember between two events."""

    num_rounds: int = 0
    round: int = 0
    done: int = 0
    sampled: int = 0
    answered: int = 0
    quarantined: int = 0
    refused: tuple[Event, ...] = ()
    seconds: tuple[float, ...] = ()
    server_metrics: Mapping[str, Any] = field(default_factory=dict)
    client_metrics: Mapping[str, Any] = field(default_factory=dict)
    privacy: Event | None = None
    weights: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """By client: the sum of its weights, 1 being an equal share, and the number of rounds."""

    @property
    def eta_s(self) -> float | None:
        """Seconds left, or ``None`` before two rounds were timed.

        The first does not count: it waits for the clients' processes and compiles, the others do not.
        """
        timed = self.seconds[1:]
        return median(timed[-ETA_WINDOW:]) * max(0, self.num_rounds - self.done) if timed else None


def advance(state: ProgressState, event: Event) -> tuple[ProgressState, list[str]]:
    """Return the state after ``event`` and the lines that tell of it; unknown types tell nothing.

    Replies that are not used are told together, when the next event of another type comes.
    """
    if event["event"] == "reply":
        return _count(state, event), []
    refusals = _describe_refusals(state.refused)
    after, lines = _advance(replace(state, refused=()), event)
    return after, refusals + lines


def _advance(state: ProgressState, event: Event) -> tuple[ProgressState, list[str]]:
    """Return the state after an event that is no reply, and its own lines."""
    match event["event"]:
        case "run_started":
            return ProgressState(num_rounds=event["num_rounds"]), [_describe_run(event)]
        case "round_started":
            fresh = ProgressState(
                num_rounds=state.num_rounds,
                done=state.done,
                seconds=state.seconds,
                privacy=state.privacy,
                weights=state.weights,
            )
            return replace(fresh, round=event["round"], sampled=len(event["sampled"])), []
        case "missing" if event["clients"]:
            names = _name_clients([str(name) for name in event["clients"]])
            return state, [f"  {names} did not answer in time ({event['phase']})"]
        case "round_retried":
            return state, [f"  round {event['round']}, attempt {event['attempt']}: {_short(event['reason'])}"]
        case "aggregated" if event.get("rule") != "mean":  # whose weights are numbers of examples
            return replace(state, weights=_add_weights(state.weights, event["contribution"] or {})), []
        case "privacy":
            return replace(state, privacy=event), []
        case "evaluated" if event["where"] == "server":
            lines = (
                [_joined("before round 1", *_metrics(event["metrics"] or {}))] if event["round"] == 0 else []
            )
            return replace(state, server_metrics=event["metrics"]), lines
        case "evaluated":
            return replace(state, client_metrics=event["metrics"]), []
        case "round_finished":
            after = replace(state, done=event["round"], seconds=(*state.seconds, float(event["seconds"])))
            return after, [_describe_round(after, event)]
        case "run_stopped":
            return state, [f"stopped after round {event['round']}: {_short(event['reason'])}"]
        case "run_finished":
            head = f"finished {event['rounds']} rounds in {show_duration(event['seconds'])}"
            spent = [_describe_privacy(state.privacy)] if state.privacy else []
            low = _describe_low_weights(state.weights)
            return state, [_joined(head, *_metrics(event["metrics"] or {})), *low, *spent]
        case "run_failed":
            return state, [f"failed: {_short(event['error'])}"]
    return state, []


def show_duration(seconds: float) -> str:
    """Return a duration as a person says it.

    >>> [show_duration(s) for s in (0.234, 12.3, 75, 3725)]
    ['0.23 s', '12 s', '1 min 15 s', '1 h 02 min']
    """
    if seconds < 10:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class ProgressDisplay:
    """Shows the events of one run on ``console``; use as a context manager.

    Parameters
    ----------
    console : Console
        On a terminal a live bar is kept below the lines; elsewhere every line is written at once, as it is.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = ProgressState()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[eta]}"), console=console, transient=True)
            self._task = self._bar.add_task("starting", total=None, eta="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """Show a line that no event stands behind, and what is waited for."""
        self._write(text)
        if self._bar is not None:
            self._bar.update(self._task, description=text)

    def show(self, event: Event) -> None:
        """Show one event."""
        self._state, lines = advance(self._state, event)
        for line in lines:
            self._write(line)
        if self._bar is not None and self._state.round:
            eta = self._state.eta_s
            self._bar.update(
                self._task,
                description=f"round {self._state.round} of {self._state.num_rounds}",
                total=self._state.num_rounds,
                completed=self._state.done,
                eta="" if eta is None else f"ETA {show_duration(eta)}",
            )

    def _write(self, line: str) -> None:
        """Write one line as it is: no markup, and in a pipe no wrapping either."""
        if self._bar is not None:
            self._console.print(Text(line))
        else:
            self._console.file.write(line + "\n")
            self._console.file.flush()


def _describe_run(event: Event) -> str:
    """Return the line that says what is run."""
    parts = [str(event[key]) for key in ("strategy", "client", "task") if event[key]]
    if event["attack"]:
        parts.append(f"attack {event['attack']}")
    parts += [f"{event['num_rounds']} rounds", f"seed {event['seed']}"]
    if event["resumed_from"] is not None:
        parts.append(f"resumed after round {event['resumed_from']}")
    return _joined(*parts)


def _count(state: ProgressState, event: Event) -> ProgressState:
    """Return the state with one reply more; replies to evaluation are told but not counted."""
    if event["status"] != "accepted":
        state = replace(state, refused=(*state.refused, event))
    if event["phase"] != "train":
        return state
    quarantined = event["status"] == "quarantined"
    return replace(state, answered=state.answered + 1, quarantined=state.quarantined + quarantined)


def _add_weights(
    weights: Mapping[str, tuple[float, int]], contribution: Mapping[str, float]
) -> dict[str, tuple[float, int]]:
    """Return the weights with those of one round more."""
    after = dict(weights)
    for client, share in contribution.items():
        total, rounds = after.get(client, (0.0, 0))
        after[client] = (total + share * len(contribution), rounds + 1)
    return after


def _describe_low_weights(weights: Mapping[str, tuple[float, int]]) -> list[str]:
    """Return which clients the rule trimmed or weighted down most, over all rounds, if there are any.

    >>> _describe_low_weights({"0": (0.1, 5), "1": (5.0, 5), "2": (1.0, 5)})
    ['least weight in the aggregate, 1 being an equal share: client 0 0.02, client 2 0.20']
    """
    mean = {client: total / rounds for client, (total, rounds) in weights.items()}
    low = sorted((weight, len(client), client) for client, weight in mean.items() if weight < LOW_WEIGHT)
    if not low:
        return []
    listed = ", ".join(f"client {client} {weight:.2f}" for weight, _, client in low[:MAX_NAMES])
    more = f" and {len(low) - MAX_NAMES} more" if len(low) > MAX_NAMES else ""
    return [f"least weight in the aggregate, 1 being an equal share: {listed}{more}"]


def _describe_refusals(replies: Sequence[Event]) -> list[str]:
    """Return why replies are not used, one line for all clients with the same reason."""
    clients: dict[str, list[str]] = {}
    for reply in replies:
        what = f"{reply['status']} ({reply['phase']}): {_short(reply['reason'])}"
        clients.setdefault(what, []).append(str(reply["client"]))
    return [f"  {_name_clients(names)} {what}" for what, names in clients.items()]


def _name_clients(names: Sequence[str]) -> str:
    """Return clients in a few words.

    >>> _name_clients(["10", "9"]), _name_clients(["a"])
    ('clients 9, 10', 'client a')
    """
    ordered = sorted(names, key=lambda name: (len(name), name))
    listed = ", ".join(ordered[:MAX_NAMES])
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return f"client{'s' * (len(names) > 1)} {listed}{more}"


def _describe_round(state: ProgressState, event: Event) -> str:
    """Return the line of a finished round: metrics, clients, seconds, time left."""
    metrics = state.server_metrics or state.client_metrics or event["metrics"] or {}
    clients = f"{state.sampled} sampled, {state.answered} answered, {state.quarantined} quarantined"
    seconds = show_duration(float(event["seconds"]))
    eta = [f"ETA {show_duration(state.eta_s)}"] if state.eta_s else []
    spent = [f"ε {show_number(state.privacy['epsilon'])}"] if state.privacy else []
    return _joined(
        f"round {event['round']} of {state.num_rounds}", *_metrics(metrics), *spent, clients, seconds, *eta
    )


def _describe_privacy(event: Event) -> str:
    """Return what was spent; an ε means nothing without δ, unit and adjacency."""
    void = "" if event["secure"] else "VOID, noise came from a seed: "
    return (
        f"privacy: {void}ε = {show_number(event['epsilon'])} at δ = {event['delta']:g}, unit "
        f"{event['unit']}, adjacency {event['adjacency']} ({event['method']})"
    )


def _metrics(metrics: Mapping[str, Any]) -> list[str]:
    """Return the first few metrics as text; lists are not for a line."""
    scalars = in_order(name for name, value in metrics.items() if not isinstance(value, list))
    return [f"{name} {show_number(metrics[name])}" for name in scalars[:MAX_METRICS]]


def _joined(*parts: str) -> str:
    """Return the parts of one line."""
    return " · ".join(parts)


def _short(text: Any) -> str:
    """Return text of any length and shape as one line."""
    line = " ".join(str(text).split())
    return line if len(line) <= MAX_TEXT_CHARS else line[: MAX_TEXT_CHARS - 1] + "…"
