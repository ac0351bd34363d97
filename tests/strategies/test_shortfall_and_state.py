"""Too few usable replies for a rule, and rules that remember: announced, never clamped, resumed exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord

from fl_plugins.aggregation import Bucketing, CenteredClipping, Chain, GeometricMedian, Mean, Median
from fl_plugins.errors import ConfigError, ConfigTypeError, PreconditionError, StructureError
from fl_plugins.records import to_named
from fl_plugins.registry import Kind
from fl_plugins.run_options import RunOptions
from fl_plugins.spec import build
from fl_plugins.testing import InProcessGrid
from strategies import CenteredClipping as CenteredClippingStrategy
from strategies import FedAvg, FederatedStrategy, Krum, Robust, RootTrust, TrimmedMean

QUIET = {"fraction_evaluate": 0.0}


class Events:
    """Keeps every event."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, /, **fields: Any) -> None:
        self.all.append((event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.all if name == event]


def run(strategy: FederatedStrategy, client: Any, initial: ArrayRecord, **options: Any) -> tuple[Any, Events]:
    events = Events()
    with InProcessGrid(client, options.pop("clients", 5)) as grid:
        chosen = {"num_rounds": 1, "seed": 1, **options}
        return strategy.run(grid, initial, RunOptions(emit=events, **chosen)), events


@pytest.fixture
def two_are_nan(make_client: Callable[..., Any]) -> Any:
    """Five clients: of two, every value is NaN; the others add 1, 2 and 3."""
    return make_client(lambda partition: np.nan if partition >= 3 else partition + 1.0)


def test_quarantined_replies_are_not_among_n_and_f_stays(two_are_nan: Any, initial: ArrayRecord) -> None:
    """n = 3 accepted with f = 1 holds n > 2f; with f = 2 it does not, although 5 were asked."""
    result, events = run(TrimmedMean(num_byzantine=1, **QUIET), two_are_nan, initial)
    np.testing.assert_array_equal(to_named(result.arrays)["params/w"], np.full((3, 2), 2.0, np.float32))
    assert events.of("aggregated")[0]["non_finite"] == 2
    with pytest.raises(PreconditionError, match=r"n=3 updates but num_byzantine=2 needs n > 2f"):
        run(TrimmedMean(num_byzantine=2, max_attempts=1, **QUIET), two_are_nan, initial)


@pytest.mark.parametrize(("choice", "exchanges"), [("retry", 3), ("raise", 1)])
def test_a_shortfall_is_retried_or_raised_as_asked(
    choice: Any, exchanges: int, two_are_nan: Any, initial: ArrayRecord
) -> None:
    events = Events()
    strategy = Krum(num_byzantine=1, on_shortfall=choice, **QUIET)
    with InProcessGrid(two_are_nan, 5) as grid, pytest.raises(PreconditionError, match="n=3 updates"):
        strategy.run(grid, initial, RunOptions(num_rounds=1, seed=0, emit=events))
    assert len(events.of("round_started")) == exchanges
    assert len(events.of("round_retried")) == exchanges - 1
    assert events.of("fallback_used") == []


def test_the_named_fallback_stands_in_and_says_so(two_are_nan: Any, initial: ArrayRecord) -> None:
    strategy = build(Kind.STRATEGY, "krum(num_byzantine=1, fallback=median(), fraction_evaluate=0.0)")
    result, events = run(strategy, two_are_nan, initial)
    np.testing.assert_array_equal(to_named(result.arrays)["params/w"], np.full((3, 2), 2.0, np.float32))
    (used,), (aggregated,) = events.of("fallback_used"), events.of("aggregated")
    assert (used["round"], used["accepted"], used["rule"]) == (1, 3, "median")
    assert "krum: n=3 updates" in used["reason"]
    assert (aggregated["rule"], aggregated["fallback"]) == ("median", True)
    assert "fallback=Median()" in strategy.describe()


def test_the_fallback_stays_away_while_the_rule_can_work(
    make_client: Callable[..., Any], initial: ArrayRecord
) -> None:
    _, events = run(Krum(num_byzantine=1, fallback=Median(), **QUIET), make_client(1.0), initial)
    assert events.of("fallback_used") == []
    assert (events.of("aggregated")[0]["rule"], events.of("aggregated")[0]["fallback"]) == ("krum", False)


def test_a_fallback_that_cannot_work_either_is_a_shortfall(two_are_nan: Any, initial: ArrayRecord) -> None:
    strategy = Krum(num_byzantine=1, fallback=GeometricMedian(num_byzantine=2), max_attempts=2, **QUIET)
    with pytest.raises(PreconditionError, match="geometric_median: n=3"):
        run(strategy, two_are_nan, initial)


def test_a_cohort_that_can_never_do_is_refused_before_messages_leave_even_with_a_fallback(
    make_client: Callable[..., Any], initial: ArrayRecord
) -> None:
    with (
        InProcessGrid(make_client(1.0), 4) as grid,
        pytest.raises(PreconditionError, match="n=4 updates"),
    ):
        list(Krum(num_byzantine=1, fallback=Median()).configure_train(1, initial, ConfigRecord(), grid))


def test_an_example_weighted_strategy_hands_its_robust_fallback_no_weights(
    two_are_nan: Any, initial: ArrayRecord
) -> None:
    strategy = FedAvg(fallback=Median(), **QUIET)
    strategy.aggregator = Chain(GeometricMedian(num_byzantine=2))  # any rule that falls short
    result, _ = run(strategy, two_are_nan, initial)
    np.testing.assert_array_equal(to_named(result.arrays)["params/w"], np.full((3, 2), 2.0, np.float32))


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(ConfigError, match="on_shortfall='never'"):
        Krum(num_byzantine=1, on_shortfall="never")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="give one of them"):
        Krum(num_byzantine=1, on_shortfall="raise", fallback=Median())
    with pytest.raises(ConfigTypeError, match="fallback='median'"):
        Krum(num_byzantine=1, fallback="median")
    with pytest.raises(ConfigError, match="exactly one"):
        Robust()
    with pytest.raises(ConfigError, match="exactly one"):
        Robust(num_byzantine=1, aggregator=Mean())
    with pytest.raises(ConfigTypeError, match="is a rule"):
        Robust(aggregator=Bucketing(size=2))  # type: ignore[arg-type]


STATEFUL: dict[str, Callable[[], FederatedStrategy]] = {
    "centered_clipping": lambda: CenteredClippingStrategy(max_norm=1.5, iterations=2, **QUIET),
    "bucketing": lambda: Robust(aggregator=Chain(Bucketing(size=2, seed=3), Median()), **QUIET),
    "chain": lambda: Robust(
        aggregator=Chain(Bucketing(size=2), Bucketing(size=1, seed=9), CenteredClipping(max_norm=2.0)),
        **QUIET,
    ),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_resumed_run_of_a_rule_that_remembers_ends_bit_for_bit_the_same(
    name: str, tmp_path: Path, make_client: Callable[..., Any], initial: ArrayRecord
) -> None:
    make, client = STATEFUL[name], make_client(lambda partition: 1.7**partition)
    whole, _ = run(make(), client, initial, num_rounds=4)
    folder = {"checkpoint_dir": tmp_path, "resume": True}
    run(make(), client, initial, num_rounds=2, **folder)
    resumed, _ = run(make(), client, initial, num_rounds=4, **folder)
    assert _bits(resumed) == _bits(whole)
    # Negative control: the state matters.
    forgetful = make()
    forgetful.state = dict  # type: ignore[method-assign]
    run(forgetful, client, initial, num_rounds=2, checkpoint_dir=tmp_path / "forgetful")
    forgot, _ = run(make(), client, initial, num_rounds=4, checkpoint_dir=tmp_path / "forgetful", resume=True)
    assert _bits(forgot) != _bits(whole)


def test_state_of_another_model_or_rule_is_refused(initial: ArrayRecord) -> None:
    strategy, model = CenteredClippingStrategy(max_norm=1.0), to_named(initial)
    with pytest.raises(StructureError, match="saved state"):
        strategy.restore(model, {"aggregator/center": np.zeros(3, np.float32)})
    with pytest.raises(StructureError, match="saved state"):
        Krum(num_byzantine=1).restore(model, {"aggregator/center": np.zeros(8, np.float32)})


def test_a_new_run_forgets_the_last_ones_state(make_client: Callable[..., Any], initial: ArrayRecord) -> None:
    strategy, client = STATEFUL["centered_clipping"](), make_client(3.0)
    first, _ = run(strategy, client, initial, num_rounds=2)
    again, _ = run(strategy, client, initial, num_rounds=2)
    assert _bits(first) == _bits(again)


def test_root_trust_follows_the_root_update_and_drops_who_opposes_it(
    make_client: Callable[..., Any], initial: ArrayRecord
) -> None:
    """Three of five clients are hostile and pull the other way, a hundred times as hard."""
    seeds = []

    def train(arrays: dict[str, Any], seed: int) -> dict[str, Any]:
        seeds.append(seed)
        return {key: value + np.asarray(1).astype(value.dtype) for key, value in arrays.items()}

    client = make_client(lambda partition: -100.0 if partition < 3 else 5.0)
    result, events = run(RootTrust(train=train, **QUIET), client, initial, num_rounds=2)
    np.testing.assert_allclose(to_named(result.arrays)["params/w"], np.full((3, 2), 2.0), rtol=1e-6)
    shares = sorted(events.of("aggregated")[0]["contribution"].values())
    assert shares == pytest.approx([0, 0, 0, 0.5, 0.5])
    assert len(set(seeds)) == 2


def test_root_trust_without_a_trusted_update_ends_the_run_and_says_why(
    make_client: Callable[..., Any], initial: ArrayRecord
) -> None:
    def train(arrays: dict[str, Any], _: int) -> dict[str, Any]:
        return {key: value + np.asarray(1).astype(value.dtype) for key, value in arrays.items()}

    with pytest.raises(PreconditionError, match="nothing to trust"):
        run(RootTrust(train=train, **QUIET), make_client(-1.0), initial)


def test_root_trust_trains_on_a_part_of_the_named_task() -> None:
    strategy = RootTrust(task="digits()", client="supervised(local_epochs=1)", root_partitions=50)
    from clients.supervised import Supervised
    from clients.tasks.digits import digits

    arrays = Supervised(task=digits()).init(seed=0)
    trained = strategy._train(arrays, 3)
    assert {key: value.shape for key, value in trained.items()} == {k: v.shape for k, v in arrays.items()}
    assert any((trained[key] != arrays[key]).any() for key in arrays)
    with pytest.raises(ConfigError, match="exactly one of them"):
        RootTrust()
    with pytest.raises(ConfigError, match="root_partition=50"):
        RootTrust(task="digits()", root_partition=50, root_partitions=50)


def _bits(result: Any) -> dict[str, bytes]:
    return {key: value.tobytes() for key, value in to_named(result.arrays).items()}
