"""The private strategy around its sum: what may be stacked, sent and released, and how clips adapt."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from fl_plugins import wire
from fl_plugins.errors import (
    CheckpointError,
    ConfigError,
    ConfigTypeError,
    ContractError,
    PreconditionError,
    QuorumError,
)
from fl_plugins.node_policy import announcement
from fl_plugins.privacy import joint_noise_multiplier
from fl_plugins.privacy.noise import grid_for
from fl_plugins.registry import Kind
from fl_plugins.run_options import RunOptions
from fl_plugins.spec import build
from fl_plugins.testing import InProcessGrid
from strategies import DpFedAvg
from strategies.dp_options import AdaptiveClip

from .conftest import adding
from .dp_support import MODEL, failing, make, moving, play

NEEDED = (
    "unit='client', adjacency='add_remove', population=10, delta=1e-5, clip_norm=1.0, noise_multiplier=1.0"
)


def model_record() -> ArrayRecord:
    return ArrayRecord({key: Array(value) for key, value in MODEL.items()})


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        ("krum(num_byzantine=1)", "krum sees every update.*sensitivity"),
        ("median()", "median sees every update"),
        ("norm_bounded_mean(max_norm=1.0)", "norm_bounded_mean sees every update"),
        ("robust(num_byzantine=1)", "sees every update"),
        ("fedavg()", 'weighting="examples".*public bound: max_examples'),
        ('fedavg(weighting="uniform", fallback=median())', "another rule would stand in"),
        ('fedavg(weighting="uniform", quorum=0.5)', "must not depend on who answers"),
        ('fedavg(weighting="uniform", max_attempts=2)', "another release"),
        ('fedavg(weighting="uniform", fraction_train=0.5)', "give sampling"),
        (f'dp_fedavg(fedavg(weighting="uniform"), {NEEDED})', "has a _form of its own"),
        ("root_trust(task=digits())", "has a aggregate_rows of its own"),
    ],
)
def test_a_stack_whose_sensitivity_is_unknown_is_refused_with_the_reason(inner: str, reason: str) -> None:
    with pytest.raises(ContractError, match=reason):
        build(Kind.STRATEGY, f"dp_fedavg({inner}, {NEEDED})")


def test_what_is_no_strategy_of_ours_is_refused() -> None:
    with pytest.raises(ConfigTypeError, match="it is a FederatedStrategy"):
        make("fedavg")  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", ["everyone()", "poisson(rate=0.5)", '"poisson(rate=0.5)"'])
def test_a_spec_builds_the_whole_stack(sampling: str) -> None:
    spec = f'dp_fedavg(fedavg(weighting="uniform", server_optimizer=adam(learning_rate=0.1)), {NEEDED}'
    strategy = build(Kind.STRATEGY, f"{spec}, sampling={sampling})")
    assert isinstance(strategy, DpFedAvg)
    assert strategy.server_optimizer is not None
    assert strategy.expected_cohort == (10.0 if sampling == "everyone()" else 5.0)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"unit": "record"}, "adjacency='replace' covers each of their records"),
        ({"unit": "patient"}, "one of client, record"),
        ({"adjacency": "neighbours"}, "one of add_remove, replace, zero_out"),
        ({"sampling": "fixed_size(size=3)"}, "no accounting under adjacency='zero_out'"),
        (
            {"sampling": "poisson(rate=0.5)", "adjacency": "replace"},
            "no accounting under adjacency='replace'",
        ),
        ({"sampling": "poisson(rate=0.5, population=3)"}, r"one of everyone\(\), poisson\(rate=…"),
        ({"sampling": "uniform(rate=0.5)"}, r"fixed_size\(size=…"),
        ({"sampling": "poisson()"}, "rate"),
        ({"clip": "adaptive(initial=1.0)", "clip_norm": 1.0}, "exactly one"),
        ({"clip_norm": None}, "exactly one"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"clip": "adaptive(initial=1.0, count_noise=0.1)"}, "raise the noise"),
        ({"clip": "adaptive(initial=1.0, quantile=1.0)"}, "quantile"),
        ({"noise_multiplier": 0.0}, "noise_multiplier"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": 0.02, "population": 100}, r"delta=0.02.*\(0, 0.01\]"),
        ({"noise_multiplier": None}, "give either noise_multiplier, or target_epsilon"),
        ({"target_epsilon": 2.0, "num_rounds": 5}, "give either"),
        ({"noise_multiplier": None, "target_epsilon": 2.0}, "give either"),
        ({"per_layer": True, "clip": "adaptive(initial=1.0)"}, "norm of whole updates"),
        ({"max_examples": 10}, 'inner strategy has weighting="uniform"'),
        ({"mean_weight": 0.5}, "all weights are 1"),
        ({"untrained_arrays": "average"}, "untrained_arrays"),
        ({"population": 0}, "population"),
    ],
)
def test_a_guarantee_that_is_not_whole_is_refused_at_construction(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make(**given)


@pytest.mark.parametrize("missing", ["unit", "adjacency", "population", "delta"])
def test_unit_adjacency_population_and_delta_have_no_default(missing: str) -> None:
    arguments = [each for each in NEEDED.split(", ") if not each.startswith(missing)]
    with pytest.raises(ConfigError, match=f"{missing} not given"):
        build(Kind.STRATEGY, f'dp_fedavg(fedavg(weighting="uniform"), {", ".join(arguments)})')


def test_more_clients_than_the_population_are_refused_before_anything_is_sent_or_charged() -> None:
    strategy = make(population=3)
    with InProcessGrid(lambda message, _: message, 4) as grid:
        with pytest.raises(PreconditionError, match=r"4 clients are connected.*population=3"):
            strategy.configure_train(1, model_record(), ConfigRecord(), grid)
        assert grid.sent == []
    assert strategy.budget.report().num_releases == 0


def test_an_empty_cohort_releases_noise_with_the_same_denominator() -> None:
    for seed in range(200):
        strategy = make(sampling="poisson(rate=0.1)", insecure_seed=seed, grid=True)
        released = play(strategy, dict.fromkeys(range(6), moving(1.0, norm=1e6)))
        if not released.sent:
            break
    assert released.sent == []
    assert strategy.budget.report().num_releases == 1
    source = strategy.noise_source("noise", 1)
    for key in sorted(MODEL):
        noise = source.normal(MODEL[key].size, std=0.5).reshape(MODEL[key].shape)
        moved = (released.arrays[key] - MODEL[key]) * strategy.expected_cohort
        np.testing.assert_allclose(moved, noise, atol=grid_for(0.5))


def test_a_round_is_never_tried_again_and_never_released_twice() -> None:
    strategy = make()
    with InProcessGrid(lambda message, _: message, 6) as grid:
        strategy.configure_train(1, model_record(), ConfigRecord(), grid)
        strategy.aggregate_train(1, [])
        with pytest.raises(ConfigError, match="released before"):
            strategy.aggregate_train(1, [])


def test_min_replies_ends_the_run_and_the_round_stays_charged() -> None:
    strategy = make(min_replies=4)
    with pytest.raises(QuorumError, match=r"3 of 6 clients sent anything.*min_replies=4.*counts as spent"):
        play(strategy, dict.fromkeys(range(3), failing))
    assert strategy.budget.report().num_releases == 1
    poisoned = {
        p: lambda received: {k: np.full_like(v, np.nan) for k, v in received.items()} for p in range(3)
    }
    play(make(min_replies=4), poisoned)  # what they sent is not looked at


def test_d2_d19_no_metric_of_a_client_is_given_out() -> None:
    released = play(make(clip="adaptive(initial=1.0)"), {})
    assert released.metrics.keys() == {"privacy-epsilon", "privacy-delta"}
    with_metrics = play(make(unprotected_metrics=True), {})
    assert with_metrics.metrics["loss"] == pytest.approx(0.125 * 2.5)


@pytest.mark.parametrize("unprotected", [False, True])
def test_clients_evaluate_only_if_their_metrics_may_go_out_unprotected(unprotected: bool) -> None:
    strategy = make(unprotected_metrics=unprotected)
    with InProcessGrid(adding(1.0), 6) as grid:
        result = strategy.run(grid, model_record(), RunOptions(num_rounds=1))
        kinds = {message.metadata.message_type for message in grid.sent}
    assert kinds == ({"train", "evaluate"} if unprotected else {"train"})
    assert bool(result.evaluate_metrics_clientapp) == unprotected


def test_messages_promise_what_is_done_and_do_not_tell_how_many_were_drawn() -> None:
    strategy = make(sampling="poisson(rate=0.5)", adjacency="add_remove", insecure_seed=None, max_epsilon=9.0)
    for _ in range(20):
        released = play(strategy, {})
        if released.sent and len(released.sent) != 3:
            break
    assert len(released.sent) not in (0, 3)
    config = released.sent[0].content.config_records[wire.CONFIG]
    assert config[wire.COHORT_SIZE] == 3
    (promise,) = announcement(config, wire.PROMISES)
    told = dict(promise.kwargs)
    assert promise.name == "central_dp"
    assert told["unit"] == "client"
    assert told["adjacency"] == "add_remove"
    assert (told["noise_multiplier"], told["clip_norm"], told["delta"]) == (1.0, 0.5, 1e-5)
    assert told["epsilon"] == 9.0
    assert make().announce("train", 1) == {}  # seeded noise is no promise


def test_d6_seeding_numpy_does_not_seed_the_noise() -> None:
    results = []
    for _ in range(2):
        np.random.seed(0)  # noqa: NPY002  what must not matter
        results.append(play(make(insecure_seed=None), {}).arrays["params/w"])
    assert (results[0] != results[1]).all()


def _noise_scale(z: float, *, shrink: float = 1.0) -> float:
    """Return the noise's standard deviation over what it should be, with 20,000 values."""
    model = {"params/w": np.zeros(20_000)}
    strategy = make(insecure_seed=None, noise_multiplier=z, grid=True)
    strategy.mean = replace(strategy.mean, update_noise=z * shrink)
    released = play(strategy, {}, model=model).arrays["params/w"]
    return float(np.sqrt(np.mean(released**2))) * strategy.expected_cohort / (z * 0.5)


def test_the_noise_has_the_scale_that_is_accounted() -> None:
    """The mean square of n normals has a standard error of √(2/n); with 5 of them 6 % less is caught."""
    slack = 5.0 * math.sqrt(0.5 / 20_000)
    assert abs(_noise_scale(1.7) - 1.0) < slack
    assert abs(_noise_scale(1.7, shrink=0.94) - 1.0) > slack


class TestAdaptiveClipping:
    """The clip norm follows a quantile of the norms, at a known cost."""

    def test_d18_updates_and_bits_together_cost_the_noise_multiplier_that_is_accounted(self) -> None:
        for z, cohort in ((1.0, 20.0), (1.0, 1000.0), (5.0, 20.0)):
            updates, count = AdaptiveClip(initial=1.0).split(z, cohort)
            assert count is not None
            # One client moves the sum of the bits by ½, so the bits' own multiplier is count / ½.
            assert joint_noise_multiplier(updates, count / 0.5) == pytest.approx(z, rel=1e-12)
            assert z < updates <= 1.052 * z

    def test_d26_the_noise_fits_the_clip_norm_that_was_used(self) -> None:
        adaptive, fixed = make(clip="adaptive(initial=0.5)"), make(clip_norm=0.5)
        fixed.mean = replace(fixed.mean, update_noise=adaptive.mean.update_noise)
        clients = dict.fromkeys(range(6), moving(1.0, norm=100.0))
        one, other = play(adaptive, clients), play(fixed, clients)
        for key in MODEL:
            np.testing.assert_array_equal(one.arrays[key], other.arrays[key])
        assert adaptive.clip_norm != 0.5

    @pytest.mark.parametrize("initial", [0.05, 20.0])
    @pytest.mark.parametrize(("quantile", "lower", "upper"), [(0.5, 0.7, 1.4), (0.9, 2.2, 5.0)])
    def test_d1_the_clip_norm_ends_at_the_quantile_from_both_sides(
        self, initial: float, quantile: float, lower: float, upper: float
    ) -> None:
        """Norms are 2^-2 … 2^2 in equal steps: the median is 1, nine tenths are below 3.0."""
        norms = 2.0 ** np.linspace(-2.0, 2.0, 21)
        clip = f"adaptive(initial={initial}, quantile={quantile}, learning_rate=0.4)"
        strategy = make(population=21, clip=clip, noise_multiplier=0.1)
        clients = {partition: moving(1.0, norm=float(norm)) for partition, norm in enumerate(norms)}
        reached = []
        for number in range(1, 81):
            play(strategy, clients, number=number)
            reached.append(strategy.clip_norm)
        assert lower < np.median(reached[-10:]) < upper

    def test_no_step_is_taken_while_the_clip_norm_is_far_above_all_norms_and_every_step_after(self) -> None:
        strategy = make(clip="adaptive(initial=20.0, learning_rate=1.0)", noise_multiplier=0.1)
        clients = dict.fromkeys(range(6), moving(1.0, norm=1.0))
        model, still_there = dict(MODEL), []
        for number in range(1, 16):
            used = strategy.clip_norm
            model_after = play(strategy, clients, model=model, number=number).arrays
            same = all((model_after[key] == model[key]).all() for key in model)
            still_there.append(same)
            assert same == (used > 1.0 and all(still_there)), number
            model = model_after
        assert still_there[0]
        assert not still_there[-1]

    def test_the_clip_norm_survives_a_restart(self) -> None:
        strategy = make(clip="adaptive(initial=0.5)")
        play(strategy, {})
        other = make(clip="adaptive(initial=0.5)")
        with pytest.raises(CheckpointError, match="has 0 releases, but the checkpoint was made after 1"):
            other.restore(dict(MODEL), strategy.state())
        other.budget = strategy.budget
        other.restore(dict(MODEL), strategy.state())
        assert other.clip_norm == strategy.clip_norm != 0.5

    def test_the_count_is_in_no_event_and_no_metric(self) -> None:
        events: list[tuple[str, dict[str, Any]]] = []
        strategy = make(clip="adaptive(initial=0.5)")
        with InProcessGrid(adding(1.0), 6) as grid:
            options = RunOptions(num_rounds=1, emit=lambda event, /, **fields: events.append((event, fields)))
            strategy.run(grid, model_record(), options)
        for _, fields in events:
            assert not {key for key in fields if "bit" in key or "count" in key}
        (privacy,) = [fields for event, fields in events if event == "privacy"]
        assert privacy["clip_norm"] == 0.5
        assert (privacy["unit"], privacy["adjacency"], privacy["secure"]) == ("client", "zero_out", False)
