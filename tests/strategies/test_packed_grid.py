"""Arrays travel packed to nodes that say so, and to no others; what a run ends with is the same."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result

from fl_plugins import _flower, wire
from fl_plugins.apps.client_app import app
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.packed import packed_mod
from fl_plugins.apps.server_app import run_app
from fl_plugins.packing import is_packed
from fl_plugins.records import from_named
from fl_plugins.testing import InProcessGrid
from strategies.packed_grid import PackedGrid, packed

FAST: dict[str, Any] = {"task": "digits(model='mlp')", "num_rounds": 2}


class Watched(InProcessGrid):
    """Sends copies at once, as a network does, and notes kind, node, and whether packed of what goes by."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.wire: list[tuple[str, int, bool]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        for message in sent:
            self._note(message.metadata.message_type, message.metadata.dst_node_id, message)
        identifiers = list(super().push_messages(map(_flower.through_the_wire, sent)))
        for message, identifier in zip(sent, identifiers, strict=True):
            message.metadata.__dict__["_message_id"] = identifier
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            self._note("reply", reply.metadata.src_node_id, reply)
        return replies

    def seen(self, *kinds: str) -> dict[int, set[bool]]:
        """Node → whether messages of these kinds were packed."""
        found: dict[int, set[bool]] = {}
        for kind, node, is_it in self.wire:
            if kind in kinds:
                found.setdefault(node, set()).add(is_it)
        return found

    def _note(self, kind: str, node: int, message: Message) -> None:
        if message.has_content():
            self.wire.append((kind, node, is_packed(message.content)))


@pytest.fixture(autouse=True)
def every_grid_moves_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strategies.packed_grid.moves_objects", lambda grid: isinstance(grid, Watched))


def run(*, watched: bool, overrides: Any = None, **config: Any) -> tuple[Result, InProcessGrid]:
    given = {**FAST, **config}
    run_config = {**RunConfig.defaults(), **{key.replace("_", "-"): value for key, value in given.items()}}
    kind = Watched if watched else InProcessGrid
    with kind(app, 4, run_config=run_config, overrides=overrides) as grid:
        return run_app(grid, RunConfig(**given)), grid


@pytest.mark.parametrize(
    "config",
    [
        {"strategy": "fedavg"},
        {"strategy": "krum(num_byzantine=0)"},
        {
            "strategy": "secure_aggregation(fedavg(), max_weight=2000, clip=2.0)",
            "client_evaluation": False,
        },
        {"strategy": "fedavg", "virtual_clients": 8},
    ],
    ids=lambda config: config["strategy"].partition("(")[0] + str(config.get("virtual_clients", "")),
)
def test_a_run_with_packed_arrays_has_the_bits_of_one_without(config: dict[str, Any]) -> None:
    packed_run, grid = run(watched=True, **config)
    plain_run, _ = run(watched=False, **config)
    assert isinstance(grid, Watched)
    for node in (1, 2, 3, 4):  # the negative control; what has no arrays is not packed, nor the reply to it
        assert True in grid.seen("train")[node]
        assert config["strategy"].startswith("secure") or True in grid.seen("reply")[node]
    for key, array in plain_run.arrays.items():
        if config["strategy"].startswith("secure"):  # fixed point with 2.0 / 2^20 or finer, rounded at random
            np.testing.assert_allclose(packed_run.arrays[key].numpy(), array.numpy(), atol=1e-5)
        else:
            assert packed_run.arrays[key].data == array.data


def test_nodes_of_other_apps_are_sent_what_flower_sends(caplog: pytest.LogCaptureFixture) -> None:
    def older(message: Message, context: Context) -> Message:
        """Answer like a node of the version before."""
        reply = app(message, context)
        if message.metadata.message_type == wire.ROLL_CALL:
            del reply.content.config_records[wire.CONFIG][wire.PACKS]
        return reply

    _, grid = run(watched=True, overrides={2: older})
    assert isinstance(grid, Watched)
    everything = grid.seen("train", "evaluate")
    assert everything == {1: {True}, 2: {False}, 3: {True}, 4: {True}}
    assert grid.seen("reply")[2] == {False}
    assert not [record for record in caplog.records if "quarantined" in record.message]


def test_a_reply_that_cannot_be_unpacked_is_quarantined_and_the_round_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def liar(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "train":
            pieces = [key for key in reply.content if key.startswith(wire.PACKED)]
            reply.content[pieces[0]] = ConfigRecord({wire.PACKED: b"\x00" * 8 + b"nonsense"})
        return reply

    result, _ = run(watched=True, strategy="fedavg(quorum=0.5)", overrides={3: liar}, client_evaluation=False)
    assert max(result.train_metrics_clientapp) == 2
    assert "node 3: packing: " in caplog.text
    assert "client 2 (node 3) quarantined" in caplog.text


@pytest.mark.usefixtures("task_identity")
def test_a_node_answers_what_it_cannot_unpack_with_the_reason_and_plain_messages_plainly() -> None:
    inner = ClientApp(mods=[packed_mod])

    @inner.train()
    def train(message: Message, _: Context) -> Message:
        return Message(RecordDict({"arrays": message.content.array_records["arrays"]}), reply_to=message)

    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    broken = RecordDict({f"{wire.PACKED}/0/arrays": ConfigRecord({wire.PACKED: b"?"})})
    assert "packing" in str(inner(Message(broken, 1, "train"), context).error.reason)
    plain = RecordDict({"arrays": from_named({"w": np.arange(3.0)})})
    assert isinstance(inner(Message(plain, 1, "train"), context).content["arrays"], ArrayRecord)


def test_only_the_grid_of_a_deployment_is_wrapped() -> None:
    with InProcessGrid(app, 1) as grid:
        assert packed(grid) is grid
    with Watched(app, 1) as watched:
        assert isinstance(packed(watched), PackedGrid)
