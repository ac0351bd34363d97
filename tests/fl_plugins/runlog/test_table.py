import io
import math

from rich.console import Console

from fl_plugins.runlog.events import FIELDS
from fl_plugins.runlog.table import RunSummary, comparison_cells, comparison_table, comparison_text, summarize


def event(name, time, **fields):
    return {"schema": 1, "event": name, "time": time, **dict.fromkeys(FIELDS[name]), **fields}


def rounds(first, last, start, *, accuracy=0.5, refused=0):
    for number in range(first, last + 1):
        time = start + number
        yield event("round_started", time, round=number, attempt=1, sampled=[])
        for _ in range(refused):
            yield event("reply", time, round=number, phase="train", status="quarantined")
        # Not counted: replies to evaluation, and others than quarantined ones.
        yield event("reply", time, round=number, phase="evaluate", status="quarantined")
        yield event("reply", time, round=number, phase="train", status="failed")
        yield event("evaluated", time, round=number, where="clients", metrics={"accuracy": 0.0})
        metrics = {"accuracy": accuracy + number / 100, "loss": 1 / number, "per_class": [1.0]}
        yield event("evaluated", time, round=number, where="server", metrics=metrics)
        yield event("round_finished", time, round=number, seconds=1.0)


def test_a_finished_run_is_summarized():
    events = [
        event("run_started", 100.0, strategy="krum(num_byzantine=2)"),
        *rounds(1, 3, 100.0, refused=2),
        event("run_finished", 104.5, rounds=3),
    ]
    assert summarize(events) == RunSummary(
        strategy="krum(num_byzantine=2)",
        outcome="finished",
        rounds=3,
        metrics={"accuracy": 0.53, "loss": 1 / 3},
        best={"accuracy": 0.53},
        quarantined=6,
        seconds=4.5,
    )


def test_the_best_value_is_not_the_last_one_and_is_finite():
    events = [
        event("run_started", 0.0, strategy="fedavg"),
        event("evaluated", 1.0, round=1, where="server", metrics={"accuracy": 0.9}),
        event("evaluated", 2.0, round=2, where="server", metrics={"accuracy": "Infinity"}),
        event("evaluated", 3.0, round=3, where="server", metrics={"accuracy": "NaN", "loss": "Infinity"}),
    ]
    summary = summarize(events)
    assert summary.best == {"accuracy": 0.9}
    assert math.isnan(summary.metrics["accuracy"])
    assert summary.metrics["loss"] == math.inf
    assert summary.outcome == "unfinished"


def test_without_evaluation_at_the_server_the_clients_count():
    events = [event("evaluated", 0.0, round=1, where="clients", metrics={"loss": 2.0})]
    assert summarize(events).metrics == {"loss": 2.0}


def test_a_resumed_run_replaces_the_rounds_that_it_repeats_and_does_not_count_the_time_between():
    events = [
        event("run_started", 0.0, strategy="fedavg"),
        *rounds(1, 3, 0.0, accuracy=0.1, refused=1),
        event("run_started", 1000.0, strategy="fedavg", resumed_from=2),
        *rounds(3, 4, 1000.0, accuracy=0.2, refused=5),
        event("run_finished", 1005.0, rounds=4),
    ]
    summary = summarize(events)
    assert summary.quarantined == 1 + 1 + 5 + 5
    assert summary.rounds == 4
    assert summary.seconds == 3.0 + 5.0
    assert summary.best == {"accuracy": 0.2 + 4 / 100}
    assert summary.outcome == "finished"


def test_a_retried_round_keeps_what_was_quarantined_before():
    refused = event("reply", 1.0, round=1, phase="train", status="quarantined")
    starts = [event("round_started", 1.0, round=1, attempt=attempt, sampled=[]) for attempt in (1, 2)]
    assert summarize([starts[0], refused, starts[1], refused]).quarantined == 2


def test_outcomes():
    start, end = event("run_started", 0.0, strategy="a"), event("run_finished", 1.0)
    assert summarize([]).outcome == "unfinished"
    assert summarize([], strategy="krum").strategy == "krum"
    assert summarize([start, event("run_stopped", 1.0, round=1), end]).outcome == "stopped early"
    assert summarize([start, event("run_failed", 1.0, error="x")]).outcome == "failed"
    assert summarize([start, event("run_failed", 1.0, error="DivergenceError: NaN")]).outcome == "diverged"
    assert summarize([start, event("run_failed", 1.0, error="x"), start, end]).outcome == "finished"


def test_a_run_without_a_metric_has_a_dash_there():
    good = RunSummary(
        strategy="krum", outcome="finished", metrics={"accuracy": 0.9, "loss": 1.0}, best={"accuracy": 1}
    )
    bad = RunSummary(strategy="fedavg", outcome="failed")
    assert comparison_cells([bad, good]) == [
        ["strategy", "accuracy", "loss", "best accuracy", "rounds", "quarantined", "seconds", "outcome"],
        ["fedavg", "-", "-", "-", "0", "0", "0.0", "failed"],
        ["krum", "0.9000", "1.0000", "1.0000", "0", "0", "0.0", "finished"],
    ]


def test_the_text_is_aligned_and_has_one_line_a_run():
    summaries = [RunSummary(strategy="s" * n, outcome="finished", seconds=10.0**n) for n in (1, 40)]
    lines = comparison_text(summaries).splitlines()
    assert len(lines) == 3
    assert len({len(line) for line in lines}) == 1


def test_the_table_on_a_terminal_shows_specs_as_they_are():
    file = io.StringIO()
    summary = RunSummary(strategy="odd(name='[red]')", outcome="finished")
    Console(file=file, width=120).print(comparison_table([summary]))
    assert "odd(name='[red]')" in file.getvalue()
