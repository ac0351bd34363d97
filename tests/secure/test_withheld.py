"""What leaves a client in secure rounds, and stacks that are refused because something else would."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fl_plugins import wire
from fl_plugins._flower import through_the_wire
from fl_plugins.errors import ConfigError, ConfigTypeError, ContractError, EncodingError
from fl_plugins.records import Layout, to_named
from fl_plugins.run_options import RunOptions
from fl_plugins.secagg import Stage
from strategies import FedAvg, Krum, Median, NormBoundedMean, RootTrust, SecureAggregation

from .federation import (
    LOSS,
    MODEL,
    WatchedGrid,
    initial,
    run,
    secure,
    stage_of,
)

STAGES = (Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.UNMASK)
Events = list[dict[str, Any]]


def of(events: Events, kind: str) -> Events:
    return [event for event in events if event["event"] == kind]


# -- What leaves a client ------------------------------------------------------------------------------


def test_nothing_of_a_client_is_in_any_message_but_inside_a_masked_vector() -> None:
    grid = WatchedGrid(num_nodes=5)
    run(secure(metrics=("loss",)), grid, num_rounds=2)
    stages = [STAGES[i % 4] for i in range(8) for _ in range(5)]
    assert len(grid.replies) == len(stages)
    vectors = []
    for reply, stage in zip(grid.replies, stages, strict=True):
        assert not reply.content.metric_records
        assert list(reply.content.config_records) == [wire.SECAGG]
        assert list(reply.content.config_records[wire.SECAGG]) == ["body"]
        assert len(reply.content.array_records) == (stage is Stage.MASK)
        vectors.extend(to_named(record)["vector"] for record in reply.content.array_records.values())
    first = vectors[:5]
    # Masked words are uniform: half of the bits are ones, in every vector and in what two of them differ.
    samples = [*vectors, *(a - b for a, b in itertools.combinations(first, 2))]
    for sample in samples:
        bits = np.unpackbits(sample.view(np.uint8))
        assert abs(bits.mean() - 0.5) < 5 * 0.5 / math.sqrt(bits.size)
    # The control: what a client would send without masks fails the same test.
    layout = Layout.of(MODEL)
    settings = secure(metrics=("loss",)).secure
    bare = settings.fixed_point(5, layout).encode(
        [np.full(layout.size, 0.1)], weight=10.0, metrics={"loss": LOSS}
    )
    bits = np.unpackbits(bare.words.view(np.uint8))
    assert abs(bits.mean() - 0.5) > 5 * 0.5 / math.sqrt(bits.size)


def test_the_state_is_erased_after_the_last_stage_and_survives_between_processes() -> None:
    grid = WatchedGrid(num_nodes=4)
    sizes: list[tuple[Stage, int]] = []

    def on_reply(message: Message, reply: Message) -> Message:
        node = message.metadata.dst_node_id
        context = grid._contexts[node]
        state = context.state.config_records.get(wire.SECAGG)
        sizes.append((stage_of(message), 0 if state is None else len(state["body"])))  # type: ignore[arg-type]
        # A fresh process gets the state as bytes.
        carrier = through_the_wire(Message(context.state, node, "train")) if len(context.state) else None
        if carrier is not None:
            context.state = carrier.content
        return reply

    grid.on_reply = on_reply
    result = run(secure(), grid, num_rounds=2)
    assert result.arrays
    vector = 4 * Layout.of(MODEL).size
    for stage, size in sizes:
        if stage in (Stage.ADVERTISE, Stage.SHARE):
            assert size > vector, "the update waits"
        elif stage is Stage.MASK:
            assert 0 < size < vector, "the update is gone"
        else:
            assert size == 0


def test_clients_are_not_asked_to_evaluate_and_refuse_if_they_are() -> None:
    grid = WatchedGrid(num_nodes=4)
    run(secure(), grid)
    assert {message.metadata.message_type for message in grid.sent} == {"train"}
    announced = {wire.LAYERS: secure().announce("evaluate", 1)[wire.LAYERS]}
    with WatchedGrid(num_nodes=1) as alone:
        for given, said in ((announced, "evaluate at the server"), ({}, "announces the layers []")):
            content = RecordDict({"arrays": initial(), "config": ConfigRecord(dict(given))})
            (reply,) = alone.send_and_receive([Message(content, 1, "evaluate")])
            assert said in reply.error.reason


def test_clipped_entries_are_counted_and_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    events: Events = []
    run(secure(clip=0.25), WatchedGrid(), events=events)
    (event,) = of(events, "secure_aggregation")
    # Uniform in ±0.5: half of the entries.
    assert event["clipped_fraction"] == pytest.approx(0.5, abs=0.05)
    assert "of the update entries were beyond clip=0.25" in caplog.text


# -- What is refused at once ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner",
    [Krum(num_byzantine=1), Median(), NormBoundedMean(max_norm=1.0), RootTrust(train=lambda a, _: a)],
    ids=lambda inner: type(inner).__name__,
)
def test_a_rule_that_must_see_every_update_is_refused_when_the_stack_is_built(inner: Any) -> None:
    with pytest.raises(ContractError, match=r"must see every client's update|of its own"):
        SecureAggregation(inner, max_weight=10.0)


def test_what_an_inner_strategy_does_beside_its_rule_is_refused() -> None:
    from fl_plugins.aggregation.median import Median as MedianRule

    with pytest.raises(ContractError, match="no other rule can stand in"):
        SecureAggregation(FedAvg(fallback=MedianRule()), max_weight=10.0)
    with pytest.raises(ContractError, match=r"SecureAggregation has a .* of its own"):
        SecureAggregation(secure(), max_weight=10.0)
    with pytest.raises(ContractError, match="weighted_by_key"):
        SecureAggregation(FedAvg(weighted_by_key="n"), max_weight=10.0)
    with pytest.raises(ConfigTypeError, match="give fedavg"):
        SecureAggregation("fedavg")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_weight": None}, "need a public bound"),
        ({"tier": "paranoid"}, "tier='paranoid'"),
        ({"num_bits": 24}, "num_bits=24"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"min_clients": 1}, "min_clients=1"),
        ({"metrics": ("num-examples",)}, "travels anyway"),
        ({"metrics": ("a", "a")}, "named once"),
        ({"stage_timeout_s": 0}, "stage_timeout_s=0"),
        ({"roster": "peers.toml"}, "tier='malicious'"),
        ({"corrupt": 0.7}, "corrupt=0.7"),
    ],
)
def test_settings_that_cannot_work_are_refused_when_the_stack_is_built(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        secure(**options)
    with pytest.raises(ConfigError, match="every client counts the same"):
        SecureAggregation(FedAvg(weighting="uniform"), max_weight=5.0)


def test_virtual_clients_integers_and_a_cohort_too_large_for_the_ring_are_refused_before_training() -> None:
    with pytest.raises(ContractError, match=r"virtual-clients=7.*SuperNode of its own"):
        secure().begin(RunOptions(num_rounds=1, virtual_clients=7, roll_call=True), seed=1)
    grid = WatchedGrid()
    counter = ArrayRecord({**initial(), "state/n": Array(np.array(1, np.int64))})
    with grid, pytest.raises(ContractError, match="'state/n' is of integers"):
        secure().run(grid, counter, RunOptions(num_rounds=1))
    assert grid.sent == []
    many = WatchedGrid(num_nodes=4_000)
    with pytest.raises(EncodingError, match="use 32 bits or at most 3640 clients"):
        run(secure(num_bits=16), many)
    assert many.sent == []
