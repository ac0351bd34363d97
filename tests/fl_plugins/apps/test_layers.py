"""The dispatcher in the ready-made ClientApp: layers run in order, policies hold, nothing is left out."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fl_plugins import wire
from fl_plugins._flower import BUNDLE_CHECKED
from fl_plugins.apps.client_app import app
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.layers import layers_mod
from fl_plugins.apps.server_app import run_app
from fl_plugins.errors import QuorumError
from fl_plugins.testing import InProcessGrid

RECORDER = '''
from flwr.app import Message
from fl_plugins.registry import Kind, register
from fl_plugins.contracts import Access

calls = []

@register(Kind.MOD, "recorder")
class Recorder:
    """Writes down when it is called, and marks what goes home."""

    def __init__(self, *, name: str = "a"):
        self.name = name

    def __call__(self, message, context, call_next):
        calls.append(f"in {self.name}")
        reply = call_next(message, context)
        calls.append(f"out {self.name}")
        return reply
'''


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Install a mod that writes down its calls, in a module that a run config can name."""
    (tmp_path / "recording_mod.py").write_text(RECORDER)
    monkeypatch.syspath_prepend(str(tmp_path))
    import importlib

    module = importlib.import_module("recording_mod")
    module.calls.clear()
    return module.calls  # type: ignore[no-any-return]


def serve(
    config: Mapping[str, Any],
    *,
    client: Any = app,
    kind: str = "train",
    node_config: Mapping[str, Any] | None = None,
    **run_config: Any,
) -> Message:
    """Send one message to one node and return its reply."""
    given = {
        **RunConfig.defaults(),
        "plugins": "recording_mod",
        "task": "digits(model='mlp')",
        **run_config,
    }
    with InProcessGrid(client, 1, run_config=given, node_configs={1: node_config or {}}) as grid:
        arrays = ArrayRecord({"params/w": _array()})
        content = RecordDict({wire.ARRAYS: arrays, wire.CONFIG: ConfigRecord(dict(config))})
        (reply,) = grid.send_and_receive([Message(content, 1, kind)])
    return reply


def _array() -> Any:
    from flwr.app import Array

    return Array(np.zeros(3, np.float32))


def echo() -> ClientApp:
    """A stock app with the dispatcher: answers with what it got."""
    stock = ClientApp(mods=[layers_mod])

    @stock.train()
    def train(message: Message, _: Any) -> Message:
        return Message(message.content, reply_to=message)

    return stock


def test_layers_run_around_the_app_the_outermost_first_in_and_last_out(calls: list[str]) -> None:
    layers = ["recorder(name='outer')", "recorder(name='inner')"]
    reply = serve({wire.LAYERS: layers}, client=echo())
    assert not reply.has_error(), reply.error
    assert calls == ["in outer", "in inner", "out inner", "out outer"]


def test_a_message_without_layers_goes_straight_to_the_app(calls: list[str]) -> None:
    assert not serve({}, client=echo()).has_error()
    assert calls == []


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (["no_such_layer()"], "no_such_layer"),
        (["recorder(nme='x')"], "nme"),
        (["recorder('x')"], "unnamed"),
        (["recorder(", "recorder()"], "PolicyError"),
    ],
)
def test_a_layer_that_cannot_be_done_is_answered_with_an_error_and_never_left_out(
    calls: list[str], layers: list[str], said: str
) -> None:
    trained = []
    stock = ClientApp(mods=[layers_mod])

    @stock.train()
    def train(message: Message, _: Any) -> Message:
        trained.append(1)
        return Message(message.content, reply_to=message)

    reply = serve({wire.LAYERS: layers}, client=stock)
    assert reply.has_error()
    assert said in reply.error.reason
    assert trained == []
    assert calls == []


def test_a_stage_that_no_layer_answers_reaches_neither_the_app_nor_the_count_of_rounds(
    tmp_path: Path, calls: list[str]
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("max_rounds = 1")
    node = {"policy": str(policy)}
    for layers in ([], ["recorder()"]):
        reply = serve({wire.STAGE: 1, wire.LAYERS: layers}, client=echo(), node_config=node)
        assert "no layer that it announces has such a stage" in reply.error.reason
    assert calls == ["in a"]
    assert not serve({}, client=echo(), node_config=node).has_error()
    assert "max_rounds=1" in serve({}, client=echo(), node_config=node).error.reason


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_node_whose_policy_demands_a_layer_refuses_messages_without_it_before_its_data_are_read(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[layers.secure_aggregation]")
    from fl_plugins.apps import serving

    def touched(*_: Any) -> None:
        raise AssertionError("the data were touched")

    monkeypatch.setattr(serving, "client_stack", touched)
    reply = serve({}, kind=kind, node_config={"policy": str(policy)}, plugins="")
    assert reply.error.reason.startswith("PolicyError: policy policy.toml: this node demands the layer")


def test_a_node_whose_policy_cannot_be_read_serves_nothing(tmp_path: Path) -> None:
    node = {"policy": str(tmp_path / "missing.toml")}
    for kind in ("train", "evaluate", "query.roll_call"):
        assert "cannot be read" in serve({}, kind=kind, node_config=node, plugins="").error.reason


def test_the_run_config_cannot_replace_the_nodes_policy(tmp_path: Path) -> None:
    strict, lax = tmp_path / "strict.toml", tmp_path / "lax.toml"
    strict.write_text("[layers.secure_aggregation]")
    lax.write_text("")
    reply = serve({"policy": str(lax)}, node_config={"policy": str(strict)}, policy=str(lax), plugins="")
    assert "demands the layer" in reply.error.reason


def test_a_run_goes_on_with_the_nodes_whose_policies_allow_it_and_says_why_others_do_not(
    tmp_path: Path,
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("min_cohort = 9")
    config = RunConfig(
        task="digits(model='mlp')", num_rounds=1, client_evaluation=False, run_dir=str(tmp_path / "run")
    )
    given = RunConfig.defaults() | {"task": config.task}
    with InProcessGrid(app, 4, run_config=given, node_configs={2: {"policy": str(policy)}}) as grid:
        run_app(grid, config)
    log = (tmp_path / "run" / "events.jsonl").read_text()
    assert "the exchange has 4 clients, but this node takes part only with min_cohort=9" in log
    everywhere = {node: {"policy": str(policy)} for node in range(1, 5)}
    with InProcessGrid(app, 4, run_config=given, node_configs=everywhere) as grid, pytest.raises(QuorumError):
        run_app(grid, RunConfig(task=config.task, num_rounds=1, client_evaluation=False))


def test_a_list_of_bundles_that_nobody_has_looked_at_refuses_every_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'fab_hashes = ["{"0" * 64}"]')
    node = {"policy": str(policy)}
    for checked in (None, "1"):  # "1": a process that this one was not
        if checked:
            monkeypatch.setenv(BUNDLE_CHECKED, checked)
        assert (
            "only enforced in a node that fl-plugins-supernode"
            in serve({}, client=echo(), node_config=node, plugins="").error.reason
        )
    monkeypatch.setenv(BUNDLE_CHECKED, str(os.getpid()))
    assert not serve({}, client=echo(), node_config=node, plugins="").has_error()


def test_the_operator_says_where_the_data_are_and_the_run_may_not(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('dataset = "own"')
    node = {"policy": str(policy)}
    reason = serve({}, node_config=node, task="mnist10k()", plugins="").error.reason
    assert str(tmp_path / "own") in reason
    reason = serve({}, node_config=node, task="mnist10k(path='/etc')", plugins="").error.reason
    assert "this node's operator says where its data are" in reason
