"""What ``_flower_engine.py`` does with flwr's simulation engine, which runs here in threads, with doubles."""

import importlib
import threading
import time
from queue import Queue
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import ClientAppException
from flwr.server.superlink.fleet.vce import vce_api
from flwr.server.superlink.fleet.vce.backend import Backend
from flwr.server.superlink.fleet.vce.metrics import VceMetrics
from flwr.supercore import logger

from fl_plugins import _flower_engine
from fl_plugins._flower import server_identity
from fl_plugins._flower_engine import InProcessBackend, pause, prepare_engine, tells_of_replies

NODE, RUN = 7, 1


def make_context(cores=2):
    return Context(
        run_id=RUN,
        node_id=NODE,
        node_config={"partition-id": 0},
        state=RecordDict({"kept": ConfigRecord({"n": 1})}),
        run_config={"in-process-cores": cores},
    )


def make_message(kind="train"):
    content = RecordDict({"a": ArrayRecord({"w": Array(np.arange(3.0))}), "c": ConfigRecord({"k": [1, 2]})})
    with server_identity():
        message = Message(content, NODE, kind, group_id="1")
    message.metadata.__dict__["_message_id"] = "asked"
    return message


class Engine:
    """A LinkState, its factory and a node's store in one: hands out messages once, and keeps replies."""

    def __init__(self, cores):
        self.waiting, self.replies = [], []
        self.context = make_context(cores)
        self.run_infos = {RUN: SimpleNamespace(context=self.context)}
        self.stopped = threading.Event()

    def state(self):
        return self

    def get_message_ins(self, node_id, limit):
        assert (node_id, limit) == (NODE, 1)
        return [self.waiting.pop()] if self.waiting else []

    def store_message_res(self, message):
        self.replies.append(message)

    def retrieve_context(self, run_id):
        assert run_id == RUN
        return self.context

    def update_context(self, run_id, context):
        assert run_id == RUN
        self.context = context

    def start(self, app, backend_fn):
        def run():
            vce_api.run_api(
                lambda: app, backend_fn, {NODE: 0}, self, {NODE: self}, self.stopped, VceMetrics()
            )

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@pytest.fixture(autouse=True)
def engine_given_back(monkeypatch):
    for name in ("run_api", "Queue", "put_message_into_state"):
        monkeypatch.setattr(vce_api, name, getattr(vce_api, name))


@pytest.fixture
def app():
    app = ClientApp()

    @app.train()
    def train(message, context):
        message.content["c"]["k"].append(3)
        context.state["kept"]["n"] = 2
        if message.metadata.group_id == "broken":
            raise ValueError("the app was told to break")
        return Message(RecordDict({"told": ConfigRecord({"k": message.content["c"]["k"]})}), reply_to=message)

    return app


def no_ray():
    raise AssertionError("Ray would be started")


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_message_is_served_without_ray_and_a_pause_ends_with_the_reply(app):
    prepare_engine()
    engine = Engine(cores=2)
    assert not tells_of_replies()
    thread = engine.start(app, no_ray)
    try:
        wait_for(tells_of_replies)
        pause(0.0)
        began = time.monotonic()
        engine.waiting.append(make_message())
        pause(60)
        assert time.monotonic() - began < 30
        [reply] = engine.replies
    finally:
        ended = time.monotonic()
        engine.stopped.set()
        thread.join(20)
    assert time.monotonic() - ended < 0.8, "the engine's own queues look once in a second"
    assert reply.content["told"]["k"] == [1, 2, 3]
    assert reply.metadata.reply_to_message_id == "asked"
    assert engine.context.state["kept"]["n"] == 2
    assert not tells_of_replies()


def test_nodes_stay_with_ray_where_the_run_config_does_not_say_otherwise(app):
    prepare_engine()
    made = []

    def backend_fn():
        made.append("Ray")
        return InProcessBackend()

    engine = Engine(cores=0)
    thread = engine.start(app, backend_fn)
    wait_for(lambda: made)
    engine.stopped.set()
    thread.join(20)
    assert made == ["Ray"]


def test_the_engine_is_prepared_once_and_only_where_it_is(monkeypatch):
    prepare_engine()
    prepared = vce_api.run_api
    prepare_engine()
    assert vce_api.run_api is prepared
    monkeypatch.setattr(_flower_engine, "ENGINE", "no.such.module")
    prepare_engine()
    began = time.monotonic()
    pause(0.05)
    assert time.monotonic() - began >= 0.05


def test_an_app_shares_nothing_that_can_change_with_the_server(app):
    backend = InProcessBackend()
    backend.build(lambda: app)
    sent, context = make_message(), make_context()
    reply, left = backend.process_message(sent, context)
    assert reply.content["told"]["k"] == [1, 2, 3]
    assert sent.content["c"]["k"] == [1, 2]
    assert (context.state["kept"]["n"], left.state["kept"]["n"]) == (1, 2)


def test_an_app_that_raises_is_the_error_of_a_client_app_and_leaves_the_context_as_it_was(app):
    backend = InProcessBackend()
    backend.build(lambda: app)
    sent, context = make_message(), make_context()
    sent.metadata.group_id = "broken"
    with pytest.raises(ClientAppException, match="the app was told to break"):
        backend.process_message(sent, context)
    assert context.state["kept"]["n"] == 1


def test_the_end_of_a_log_is_uploaded_and_no_second_is_waited_for(monkeypatch):
    process = importlib.import_module("flwr.simulation.app")
    monkeypatch.setattr(process, "flush_logs", process.flush_logs)
    prepare_engine()
    assert process.flush_logs is not logger.flush_logs
    uploaded = []

    def push(request):
        time.sleep(0.1)
        uploaded.extend(request.logs)

    lines = Queue()
    thread = logger.start_log_uploader(lines, NODE, RUN, SimpleNamespace(PushLogs=push))
    for line in ("first", "last"):
        lines.put(line)
    began = time.monotonic()
    assert process.flush_logs(lines)
    assert time.monotonic() - began < 0.9, "Flower waits for one second"
    assert uploaded == ["first", "last"]
    assert not thread.is_alive()
    logger.stop_log_uploader(lines, thread)
    began = time.monotonic()
    process.flush_logs(Queue(), timeout=0.2)
    assert time.monotonic() - began >= 0.2, "without the thread, what Flower does"


def test_it_has_all_that_the_engine_may_ask_of_a_backend():
    asked = {name for name in vars(Backend) if not name.startswith("_")}
    assert asked <= set(dir(InProcessBackend))
    assert InProcessBackend().num_workers == 1
