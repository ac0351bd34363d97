"""Stopping rules against slow loops, and the promise that resuming changes nothing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.errors import ConfigError, ConfigTypeError
from fl_plugins.registry import Kind
from fl_plugins.spec import build
from fl_plugins.stopping import Plateau, Target

MODES = st.sampled_from(["max", "min"])
METRICS = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan, math.inf, -math.inf]), max_size=12)


def history(values, metric="accuracy"):
    return [(5 * number, {metric: value, "other": 9.0}) for number, value in enumerate(values)]


def better(a, b, mode):
    return a > b if mode == "max" else a < b


@given(METRICS, MODES)
def test_target_stops_exactly_when_a_value_was_reached(values, mode):
    reached = [v for v in values if v == 0.5 or better(v, 0.5, mode)]
    assert bool(Target(metric="accuracy", value=0.5, mode=mode).should_stop(history(values))) == bool(reached)


@given(METRICS, MODES, st.integers(1, 4), st.sampled_from([0.0, 0.25, 0.3]))
def test_plateau_stops_exactly_after_patience_evaluations_without_improvement(values, mode, patience, delta):
    def stale_at(end):
        """How many evaluations before ``end`` did not beat the best of all improvements before them."""
        worst = -math.inf if mode == "max" else math.inf
        best, stale = worst, 0
        for value in values[:end]:
            threshold = best + delta if mode == "max" else best - delta
            best, stale = (value, 0) if better(value, threshold, mode) else (best, stale + 1)
        return stale

    rule = Plateau(metric="accuracy", patience=patience, min_delta=delta, mode=mode)
    for now in range(len(values) + 1):
        expected = any(stale_at(end) >= patience for end in range(now + 1))
        assert bool(rule.should_stop(history(values[:now]))) == expected


def test_plateau_goes_on_while_a_loss_falls():
    rule = Plateau(metric="accuracy", patience=1, mode="min")
    assert rule.should_stop(history([0.9, 0.5, 0.4, 0.1])) is None
    assert "best: 0.1 in round 15" in rule.should_stop(history([0.9, 0.5, 0.4, 0.1, 0.2]))


LOSSES = ["loss", "val_loss", "last_epoch_loss", "eval/Loss", "top1-error", "perplexity", "rmse"]
GAINS = ["accuracy", "test_accuracy", "AUC", "macro-f1", "f1_score", "top5/acc"]


@pytest.mark.parametrize(("metric", "mode"), [*((m, "min") for m in LOSSES), *((m, "max") for m in GAINS)])
def test_a_known_name_says_whether_more_is_better(metric, mode):
    better, worse = (0.1, 0.9) if mode == "min" else (0.9, 0.1)
    improving, worsening = history([worse, 0.5, better], metric), history([better, 0.5, worse], metric)
    rule = build(Kind.STOPPER, f"plateau(metric='{metric}', patience=2)")
    assert rule.should_stop(improving) is None
    assert rule.should_stop(worsening)
    rule = build(Kind.STOPPER, f"target(metric='{metric}', value={better})")
    assert rule.should_stop(improving[:2]) is None
    assert rule.should_stop(improving)


@pytest.mark.parametrize("metric", ["gloss", "loss_ratio", "accuracyless", "score", "mirror"])
def test_an_unknown_name_needs_a_mode(metric):
    for mode in ("max", "min"):
        assert Plateau(metric=metric, patience=1, mode=mode).should_stop(history([1, 1], metric))
    with pytest.raises(ConfigError, match="give mode='max' or mode='min'"):
        Plateau(metric=metric, patience=1)
    with pytest.raises(ConfigError, match="give mode='max' or mode='min'"):
        Target(metric=metric, value=1.0)


def test_the_mode_that_is_given_counts_whatever_the_name():
    assert Plateau(metric="loss", patience=2, mode="max").should_stop(history([3.0, 2.0, 1.0], "loss"))


RULES = [
    Target(metric="accuracy", value=0.75),
    Target(metric="accuracy", value=0.25, mode="min"),
    Plateau(metric="accuracy", patience=2),
    Plateau(metric="accuracy", patience=1, min_delta=0.25, mode="min"),
]


@given(METRICS, st.sampled_from(RULES))
def test_a_rule_once_met_stays_met_so_that_a_resumed_run_stops_too(values, rule):
    reasons = [rule.should_stop(history(values[:end])) for end in range(len(values) + 1)]
    first = next((i for i, reason in enumerate(reasons) if reason), len(reasons))
    assert all(reason is None for reason in reasons[:first])
    assert len(set(reasons[first:])) <= 1


def test_the_reason_says_metric_value_and_round():
    values = history([0.1, 0.6, 0.9])
    assert Target(metric="accuracy", value=0.5).should_stop(values) == "accuracy = 0.6 >= 0.5 in round 5"
    assert (
        Target(metric="accuracy", value=0.2, mode="min").should_stop(values)
        == "accuracy = 0.1 <= 0.2 in round 0"
    )
    stale = Plateau(metric="accuracy", patience=2).should_stop(history([0.1, 0.6, 0.6, 0.5]))
    assert stale == "accuracy has not improved for 2 evaluations (best: 0.6 in round 5)"


def test_nan_is_no_progress():
    values = history([math.nan, math.nan])
    assert Target(metric="accuracy", value=0.0).should_stop(values) is None
    assert "never a number" in Plateau(metric="accuracy", patience=2).should_stop(values)


@pytest.mark.parametrize("rule", RULES)
def test_no_history_is_no_reason(rule):
    assert rule.should_stop([]) is None


@pytest.mark.parametrize("rule", RULES)
def test_an_unknown_metric_lists_the_known_ones(rule):
    with pytest.raises(ConfigError, match=r"metric='accuracy' is not measured; known are f1, other\."):
        rule.should_stop(history([1.0], metric="f1"))


def test_rounds_that_lack_the_metric_are_left_out():
    rule = Plateau(metric="accuracy", patience=2)
    assert rule.should_stop([(0, {"accuracy": 1.0}), (1, {}), (2, {}), (3, {"accuracy": 0.5})]) is None
    assert rule.should_stop([(0, {"accuracy": 1.0}), (1, {"accuracy": 1.0}), (2, {}), (3, {"accuracy": 0.5})])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("target(metric='', value=1)", "target: metric=''"),
        ("target(metric='a', value=1e999)", "target: value=inf"),
        ("target(metric='a', value=1, mode='up')", "mode='up'"),
        ("target(metric='gain', value=1)", "target: metric='gain', but its name does not tell.*mode='max'"),
        (
            "plateau(metric='gain', patience=1)",
            "plateau: metric='gain', but its name does not tell.*mode='max'",
        ),
        ("plateau(metric='a', patience=0)", "plateau: patience=0, but it must be >= 1"),
        ("plateau(metric='a', patience=1, min_delta=-0.1)", "plateau: min_delta=-0.1"),
        ("plateau(metric='a', patience=1, min_delta=1e999)", "plateau: min_delta=inf"),
    ],
)
def test_parameters_are_checked_when_the_rule_is_built(spec, message):
    with pytest.raises(ConfigError, match=message):
        build(Kind.STOPPER, spec)


def test_a_wrong_mode_from_python_is_refused_too():
    with pytest.raises(ConfigError, match="mode='up', but it must be 'auto', 'max' or 'min'"):
        Target(metric="a", value=1.0, mode="up")
    with pytest.raises(ConfigTypeError, match="patience="):
        build(Kind.STOPPER, "plateau(metric='a', patience=2.5)")
