"""What ``_flower.py`` reaches into flwr for still does what it did in the versions that we allow."""

import importlib
import inspect
import threading
import time
import tomllib
from functools import partial
from importlib.metadata import version
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.server.superlink.fleet.vce import vce_api
from google.protobuf.message import EncodeError
from packaging.requirements import Requirement

from fl_plugins import _flower, _flower_node
from fl_plugins._flower import (
    CLIENT_APP_ERROR,
    deliver_now,
    pull_promptly,
    server_identity,
    through_the_wire,
)
from fl_plugins.packing import pack
from fl_plugins.records import from_named


def test_d7_a_message_can_be_made_outside_a_run_and_the_identity_is_given_back() -> None:
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 1, "train")
    with server_identity(run_id=5, node_id=9):
        message = Message(RecordDict(), 1, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (5, 9)
    with pytest.raises(RuntimeError, match="not set"):
        Message(RecordDict(), 1, "train")


def test_a_message_survives_the_wire_and_shares_nothing_with_the_original() -> None:
    with server_identity():
        content = RecordDict(
            {"a": ArrayRecord({"w": Array(np.arange(3.0))}), "c": ConfigRecord({"k": [1, 2]})}
        )
        sent = Message(content, 4, "train", group_id="7")
        received = through_the_wire(sent)
        error = through_the_wire(Message(Error(CLIENT_APP_ERROR, "why"), reply_to=sent))
    np.testing.assert_array_equal(received.content.array_records["a"]["w"].numpy(), [0.0, 1.0, 2.0])
    assert received.content.config_records["c"]["k"] == [1, 2]
    assert received.content is not sent.content
    assert (received.metadata.dst_node_id, received.metadata.group_id) == (4, "7")
    assert (error.error.code, error.error.reason) == (CLIENT_APP_ERROR, "why")


class HeldEngine(threading.Event):
    """A stop event whose wait, the engine's pause between two sweeps, lasts until it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.pausing = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.pausing.set()
        return super().wait(None)


class LinkStateDouble:
    """Messages by node, as ``LinkState.get_message_ins`` hands them out: each once."""

    def __init__(self) -> None:
        self.waiting: dict[int, list[str]] = {}

    def get_message_ins(self, node_id: int, limit: int | None = None) -> list[str]:
        assert limit == 1
        return [self.waiting[node_id].pop()] if self.waiting.get(node_id) else []


def test_a_pausing_engine_is_handed_the_messages_that_were_pushed() -> None:
    state, stopped = LinkStateDouble(), HeldEngine()
    queue: Queue[str] = Queue()
    mapping = {7: 0, 8: 1}
    engine = threading.Thread(target=vce_api.add_messages_to_queue, args=(state, queue, mapping, stopped))
    engine.start()
    try:
        assert stopped.pausing.wait(10)
        state.waiting = {7: ["for 7"], 8: ["for 8"]}
        assert queue.empty()  # the negative control: the engine itself does not look before its pause ends
        deliver_now([7, 99])
        assert queue.get_nowait() == "for 7"
        assert queue.empty(), "nobody said that there is something for node 8"
    finally:
        stopped.set()
        engine.join(10)
    deliver_now([8])
    assert queue.empty(), "an engine that has stopped is left alone"


def test_the_installed_flwr_lies_in_the_range_that_we_declare() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    ranges = [Requirement(text) for text in pyproject["project"]["dependencies"]]
    (flwr,) = [requirement for requirement in ranges if requirement.name == "flwr"]
    assert version("flwr") in flwr.specifier


def test_what_protobuf_cannot_say_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class TooLarge:
        def SerializeToString(self) -> bytes:
            raise EncodeError("Failed to serialize proto")

    monkeypatch.setattr(_flower, "recorddict_to_proto", lambda _: TooLarge())
    with pytest.raises(ValueError, match="Failed to serialize"):
        _flower.records_to_bytes(RecordDict())


def test_a_reply_that_is_being_uploaded_is_pulled_when_it_is_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
    from flwr.superlink.grid import http_grid

    pulls = [(importlib.import_module(where), name) for where, name in _flower._PULLS.items()]
    for module, name in pulls:
        monkeypatch.setattr(module, name, getattr(module, name))  # put back in the end
    complete = time.monotonic() + 0.1
    asked = 0

    def pull(object_id: str) -> bytes:
        nonlocal asked
        asked += 1
        if time.monotonic() < complete:
            raise ObjectUnavailableError(object_id)
        return b"content"

    pull_promptly()
    prompt = http_grid.pull_objects
    pull_promptly()
    assert http_grid.pull_objects is prompt  # once
    for module, name in pulls:
        assert getattr(module, name).keywords == prompt.keywords
        assert set(prompt.keywords) < set(inspect.signature(getattr(module, name).func).parameters)
    assert prompt(["x"], pull) == {"x": b"content"}
    assert time.monotonic() - complete < 0.8  # Flower's first pause, with its jitter, is longer
    assert asked > 1


def test_a_reply_that_an_older_one_has_displaced_is_sent_when_there_is_no_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Flower's loop goes on as soon as *a* reply was sent: another one would wait for the next message."""
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode import start_client_internal as loop
    from flwr.supernode.nodestate import InMemoryNodeState
    from flwr.supernode.servicer.runtime import runtime_handlers

    for name in ("_pull_and_store_message", "time", "pull_objects"):
        monkeypatch.setattr(loop, name, getattr(loop, name))  # put back afterwards
    monkeypatch.setattr(runtime_handlers, "acquire_task", runtime_handlers.acquire_task)
    _flower_node.poll_promptly(lambda seconds: seconds)
    state = InMemoryNodeState(ObjectStoreFactory().store())
    given = dict.fromkeys(
        ("get_run", "get_fab", "pull_object", "confirm_message_received", "trusted_entities")
    )
    pull = partial(
        loop._pull_and_store_message,
        state=state,
        object_store=None,
        node_config={},
        receive=lambda: None,
        **given,
    )
    assert pull() is None
    with server_identity():
        message = Message(RecordDict(), 1, "train")
        message.metadata.__dict__["_message_id"] = "asked"
        reply = Message(RecordDict(), reply_to=message)
        reply.metadata.__dict__["_message_id"] = "answer"
    state.store_message(message)
    assert pull() is None  # a message that waits for its ClientApp is none
    state.store_message(reply)
    assert pull() is not None
    assert [each.metadata.message_id for each in state.get_messages_legacy(is_reply=True)] == ["answer"]
    assert pull() is None  # it was taken


def test_superexec_is_answered_as_soon_as_there_is_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Flower's own state and handler: only the moment of the answer is another."""
    from flwr.proto.runtime_pb2 import AcquireTaskRequest
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.nodestate import InMemoryNodeState
    from flwr.supernode.servicer.runtime import runtime_handlers

    state = InMemoryNodeState(ObjectStoreFactory().store())
    acquire = _flower_node._held_back(runtime_handlers.acquire_task)
    able, unable = AcquireTaskRequest(supported_task_types=["flwr-clientapp"]), AcquireTaskRequest()

    def timed(request: Any) -> tuple[Any, float]:
        started = time.monotonic()
        return acquire(request, state), time.monotonic() - started

    told, took = timed(able)
    assert not told.HasField("task")
    assert took >= _flower_node.HOLD_S
    told, took = timed(unable)
    assert not told.HasField("task")
    assert took < _flower_node.HOLD_S
    monkeypatch.setattr(_flower_node, "HOLD_S", 60.0)
    threading.Timer(0.1, state.create_task, kwargs={"task_type": "flwr-clientapp", "run_id": 1}).start()
    told, took = timed(able)
    assert told.task.type == "flwr-clientapp"
    assert 0.1 <= took < 30


def test_the_grid_of_a_deployment_is_known_and_moves_every_array_as_two_objects() -> None:
    from flwr.supercore.inflatable.inflatable_object import get_object_tree, iterate_object_tree
    from flwr.superlink.grid.http_grid import HttpGrid

    assert _flower.moves_objects(HttpGrid("127.0.0.1:1", insecure=True, token="t"))
    assert not _flower.moves_objects(object())
    arrays = from_named({f"w{i}": np.full(3, i, np.float32) for i in range(5)})
    plain = RecordDict({"arrays": arrays, "config": ConfigRecord({"n": 1})})
    with server_identity():
        counts = [
            len(list(iterate_object_tree(get_object_tree(Message(content, 1, "train")))))
            for content in (plain, pack(plain))
        ]
    # Message, RecordDict and ConfigRecord; beside them the record with two objects per array, or one piece.
    assert counts == [3 + 1 + 2 * 5, 3 + 1]


def test_errors_of_lost_messages_are_not_those_of_an_app() -> None:
    assert CLIENT_APP_ERROR not in _flower.LOST_MESSAGE_ERRORS
