"""The comparison of several runs, drawn from their events."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from fl_plugins.errors import DivergenceError

from .events import Event
from .metrics import HIGHER_IS_BETTER, as_number, in_order, show_number

DIVERGED = "diverged"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One row: how a run ended.

    Parameters
    ----------
    strategy : str
        The spec that was run.
    outcome : str
        ``finished``, ``stopped early``, ``diverged`` (the model is no longer finite: a result, if a bad
        one), ``failed`` or ``unfinished``.
    rounds : int
        The last round that was finished.
    metrics : dict[str, float]
        Of the last evaluation: the server's if there are any, else the clients'.
    best : dict[str, float]
        The highest value of each metric of which higher is better.
    quarantined : int
        Training replies put aside, over all rounds.
    seconds : float
        From the first event to the last; the time between a kill and a resume is not counted.
    """

    strategy: str
    outcome: str
    rounds: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    quarantined: int = 0
    seconds: float = 0.0


def summarize(events: Sequence[Event], *, strategy: str = "?") -> RunSummary:
    """Return the summary of one run's events; ``strategy`` is shown if the run never started.

    A resumed run repeats the rounds after its checkpoint: what it says of a round replaces what was said
    of it before.
    """
    quarantined: dict[int, int] = {}
    evaluated: dict[str, dict[int, dict[str, float]]] = {"server": {}, "clients": {}}
    outcome, rounds, seconds = "unfinished", 0, 0.0
    last_time: float | None = None
    for event in events:
        if last_time is not None and event["event"] != "run_started":
            seconds += event["time"] - last_time
        last_time = event["time"]
        match event["event"]:
            case "run_started":
                strategy, outcome = str(event["strategy"] or strategy), "unfinished"
            case "round_started" if event["attempt"] == 1:
                quarantined[event["round"]] = 0
            case "reply" if event["phase"] == "train" and event["status"] == "quarantined":
                quarantined[event["round"]] = quarantined.get(event["round"], 0) + 1
            case "evaluated":
                evaluated[event["where"]][event["round"]] = _scalars(event["metrics"])
            case "round_finished":
                rounds = event["round"]
            case "run_stopped":
                outcome = "stopped early"
            case "run_finished":
                outcome = "finished" if outcome == "unfinished" else outcome
            case "run_failed":
                diverged = str(event["error"]).startswith(DivergenceError.__name__)
                outcome = DIVERGED if diverged else "failed"
    history = evaluated["server"] or evaluated["clients"]
    return RunSummary(
        strategy=strategy,
        outcome=outcome,
        rounds=rounds,
        metrics=history[max(history)] if history else {},
        best=_best(history.values()),
        quarantined=sum(quarantined.values()),
        seconds=seconds,
    )


def comparison_cells(summaries: Sequence[RunSummary]) -> list[list[str]]:
    """Return the table as text: a row of headings, then one row a run.

    Metrics come in their usual order; a run without one has ``-`` there.
    """
    names = in_order({name for summary in summaries for name in summary.metrics})
    best = [name for name in names if name in HIGHER_IS_BETTER]
    rows = [
        [
            "strategy",
            *names,
            *(f"best {name}" for name in best),
            "rounds",
            "quarantined",
            "seconds",
            "outcome",
        ]
    ]
    for summary in summaries:
        values = [summary.metrics.get(name) for name in names] + [summary.best.get(name) for name in best]
        shown = ["-" if value is None else show_number(value) for value in values]
        counts = [str(summary.rounds), str(summary.quarantined), f"{summary.seconds:.1f}"]
        rows.append([summary.strategy, *shown, *counts, summary.outcome])
    return rows


def comparison_table(summaries: Sequence[RunSummary], *, title: str = "") -> Table:
    """Return the table for a terminal."""
    headings, *rows = comparison_cells(summaries)
    table = Table(title=title or None)
    for heading in headings:
        left = heading in ("strategy", "outcome")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading != "strategy")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def comparison_text(summaries: Sequence[RunSummary]) -> str:
    """Return the table for a pipe: aligned columns, one line a run, whatever the width.

    >>> runs = [RunSummary(strategy="krum", outcome="finished", rounds=2, metrics={"loss": 0.5}, seconds=4)]
    >>> print(comparison_text(runs))
    strategy    loss  rounds  quarantined  seconds   outcome
    krum      0.5000       2            0      4.0  finished
    """
    cells = comparison_cells(summaries)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = []
    for first, *others in cells:
        padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]))
    return "\n".join(lines)


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are single numbers."""
    return {name: as_number(value) for name, value in metrics.items() if not isinstance(value, list)}


def _best(history: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the highest finite value of each metric of which higher is better."""
    best: dict[str, float] = {}
    for metrics in history:
        for name in metrics.keys() & set(HIGHER_IS_BETTER):
            if math.isfinite(metrics[name]):
                best[name] = max(metrics[name], best.get(name, -math.inf))
    return best
