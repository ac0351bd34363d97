import io
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fl_plugins.runlog.events import FIELDS
from fl_plugins.runlog.progress import ProgressDisplay, ProgressState, advance


def event(name, **fields):
    return {"schema": 1, "event": name, "time": 0.0, **dict.fromkeys(FIELDS[name]), **fields}


TICK = event("checkpoint_saved", round=1, path="x")
"""An event that tells nothing of its own."""


def run(num_rounds=3, **fields):
    return event(
        "run_started",
        **{"strategy": "krum", "client": "supervised", "task": "digits", "attack": "", "seed": 7, **fields},
        num_rounds=num_rounds,
    )


def round_of(number, *, clients=("0", "1"), seconds=1.0, refused=(), metrics=None):
    yield event("round_started", round=number, attempt=1, sampled=list(clients), available=9)
    for client in clients:
        status = "quarantined" if client in refused else "accepted"
        yield event(
            "reply", round=number, phase="train", client=client, status=status, reason="NaN in params/a"
        )
    if metrics is not None:
        yield event("evaluated", round=number, where="server", metrics=metrics)
    yield event("round_finished", round=number, seconds=seconds, metrics={})


def lines_of(events):
    state, lines = ProgressState(), []
    for item in events:
        state, new = advance(state, item)
        lines += new
    return lines


def test_a_run_is_told_line_by_line():
    lines = lines_of(
        [
            run(attack="sign_flip(num_byzantine=1)"),
            event("evaluated", round=0, where="server", metrics={"accuracy": 0.1}),
            *round_of(1, refused=["1"], metrics={"loss": 0.5, "accuracy": 0.75}, seconds=4.0),
            *round_of(2, clients=["0"], metrics={"loss": "NaN", "accuracy": 0.5}),
            event("checkpoint_saved", round=2, path="x"),
            event("run_stopped", round=2, reason="accuracy is good"),
            event("run_finished", rounds=2, seconds=75.0, metrics={"accuracy": 0.5}),
        ]
    )
    assert lines == [
        "krum · supervised · digits · attack sign_flip(num_byzantine=1) · 3 rounds · seed 7",
        "before round 1 · accuracy 0.1000",
        "  client 1 quarantined (train): NaN in params/a",
        "round 1 of 3 · accuracy 0.7500 · loss 0.5000 · 2 sampled, 2 answered, 1 quarantined · 4.00 s",
        "round 2 of 3 · accuracy 0.5000 · loss nan · 1 sampled, 1 answered, 0 quarantined · 1.00 s"
        " · ETA 1.00 s",
        "stopped after round 2: accuracy is good",
        "finished 2 rounds in 1 min 15 s · accuracy 0.5000",
    ]


@pytest.mark.parametrize("rule", ["trimmed_mean", "mean"])
def test_clients_that_a_robust_rule_weighted_down_are_named_at_the_end(rule):
    """Client 2 has 0.1 · 4 and 0.02 · 3 of an equal share; a mean's weights are numbers of examples."""
    shares = ({"0": 0.4, "1": 0.3, "2": 0.1, "9": 0.2}, {"0": 0.5, "1": 0.48, "2": 0.02})
    events = [run()]
    for number, contribution in enumerate(shares, start=1):
        events += [
            event("round_started", round=number, sampled=list(contribution)),
            event("aggregated", round=number, contribution=contribution) | {"rule": rule},
        ]
    lines = lines_of([*events, event("run_finished", rounds=2, seconds=1.0, metrics={})])
    named = [line for line in lines if "least weight" in line]
    expected = "least weight in the aggregate, 1 being an equal share: client 2 0.23"
    assert named == ([expected] if rule == "trimmed_mean" else [])


def test_what_a_private_run_has_spent_is_told_with_delta_unit_and_adjacency():
    spent = event(
        "privacy",
        round=1,
        epsilon=1.5,
        delta=1e-5,
        unit="client",
        adjacency="add_remove",
        method="rdp",
        secure=True,
    )
    end = event("run_finished", rounds=1, seconds=1.0, metrics={})
    lines = lines_of([run(), *list(round_of(1))[:-1], spent, list(round_of(1))[-1], end])
    assert "round 1 of 3 · ε 1.5000 · " in lines[1]
    assert lines[-1] == "privacy: ε = 1.5000 at δ = 1e-05, unit client, adjacency add_remove (rdp)"
    void = lines_of([run(), {**spent, "secure": False}, end])
    assert void[-1].startswith("privacy: VOID, noise came from a seed: ε = ")


def test_clients_that_fail_or_do_not_answer_are_named_with_the_reason():
    state = ProgressState(num_rounds=1)
    failed = event("reply", phase="evaluate", client="4", status="failed", reason="Traceback\n  boom\n")
    missing = event("missing", phase="train", clients=["2", "3"])
    retried = event("round_retried", round=1, attempt=1, reason="1 of 4 replies are usable")
    assert lines_of([failed, TICK]) == ["  client 4 failed (evaluate): Traceback boom"]
    assert advance(state, missing)[1] == ["  clients 2, 3 did not answer in time (train)"]
    assert advance(state, event("missing", phase="train", clients=[]))[1] == []
    assert advance(state, retried)[1] == ["  round 1, attempt 1: 1 of 4 replies are usable"]
    assert advance(state, event("run_failed", error="QuorumError: none"))[1] == ["failed: QuorumError: none"]


def test_clients_with_the_same_reason_share_a_line_and_are_counted_apart():
    reasons = ["NaN"] * 14 + ["other keys"]
    replies = [
        event("reply", phase="train", client=str(client), status="quarantined", reason=reason)
        for client, reason in reversed(list(enumerate(reasons)))
    ]
    assert lines_of([*replies, TICK]) == [
        "  client 14 quarantined (train): other keys",
        "  clients 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 2 more quarantined (train): NaN",
    ]
    assert lines_of([*replies, TICK, TICK]) == lines_of([*replies, TICK])


def test_a_long_reason_is_cut_to_one_line():
    long = event("reply", phase="train", client="4", status="failed", reason="word\n" * 5000)
    [line] = lines_of([long, TICK])
    assert "\n" not in line
    assert len(line) < 400
    assert line.endswith("…")


def test_the_servers_metrics_are_shown_before_the_clients_and_lists_not_at_all():
    events = list(round_of(1, metrics={"loss": 0.5, "per_class": [1.0, 2.0]}))
    events.insert(-1, event("evaluated", round=1, where="clients", metrics={"loss": 9.0}))
    assert "loss 0.5000 · 2 sampled" in lines_of([run(), *events])[-1]


def test_metrics_of_an_earlier_round_are_not_told_again():
    lines = lines_of([run(), *round_of(1, metrics={"loss": 0.5}), *round_of(2)])
    assert "loss" not in lines[-1]


def test_a_resumed_run_says_so():
    assert lines_of([run(resumed_from=3)])[0].endswith("seed 7 · resumed after round 3")
    assert lines_of([run(resumed_from=0)])[0].endswith("resumed after round 0")


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), st.integers(0, 20))
def test_the_time_left_is_the_median_of_the_last_five_rounds_without_the_first(seconds, left):
    state = ProgressState(num_rounds=len(seconds) + left)
    for number, duration in enumerate(seconds, start=1):
        for item in round_of(number, seconds=duration):
            state, _ = advance(state, item)
    counted = seconds[1:][-5:]
    assert state.eta_s == (pytest.approx(median(counted) * left) if counted else None)


def display(events, **console):
    file = io.StringIO()
    with ProgressDisplay(Console(file=file, highlight=False, **console)) as shown:
        shown.note("starting [red]everything[/red]")
        for item in events:
            shown.show(item)
    return file.getvalue()


def test_a_pipe_gets_whole_plain_lines_at_any_width():
    reason = "[bold]" + "x" * 250
    events = [run(), event("reply", phase="train", client="1", status="quarantined", reason=reason), TICK]
    assert display(events, width=20).splitlines() == [
        "starting [red]everything[/red]",
        "krum · supervised · digits · 3 rounds · seed 7",
        f"  client 1 quarantined (train): {reason}",
    ]


def test_a_terminal_gets_the_lines_and_a_live_bar():
    events = [run(), *round_of(1, metrics={"loss": 0.5}, seconds=3.0)]
    text = display([*events, *round_of(2, seconds=3.0)], width=200, force_terminal=True)
    assert "starting [red]everything[/red]" in text
    assert "round 1 of 3 · loss 0.5000" in text
    assert "\x1b[" in text
    assert "round 2 of 3" in text
    assert text.count("ETA 3.00 s") >= 2, "in the line and in the bar"


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_no_event_breaks_the_display_if_only_what_it_must_have_is_there(name):
    needed = {
        "run_started": {"num_rounds": 3},
        "round_started": {"round": 1, "attempt": 1, "sampled": []},
        "reply": {"phase": "train", "status": "accepted", "client": "1"},
        "missing": {"phase": "train", "clients": []},
        "evaluated": {"round": 1, "where": "server", "metrics": {}},
        "round_finished": {"round": 1, "seconds": 0.1},
        "run_finished": {"rounds": 1, "seconds": 0.1},
    }
    state, lines = advance(ProgressState(num_rounds=3), event(name, **needed.get(name, {})))
    assert isinstance(state, ProgressState)
    assert all("\n" not in line for line in lines)
