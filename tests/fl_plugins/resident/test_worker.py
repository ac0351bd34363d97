"""Real workers: one per node, warm, replaced when they die, gone with their node."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fl_plugins import wire
from fl_plugins._flower import message_to_bytes
from fl_plugins.apps import client_app
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.stack import client_stack
from fl_plugins.errors import ConfigError, ConfigTypeError
from fl_plugins.records import from_named
from fl_plugins.resident import address, client, protocol, worker
from fl_plugins.resident.client import ask, serve
from fl_plugins.resident.lifetime import ProcessId
from fl_plugins.resident.protocol import Frame, ProtocolError, receive, send
from fl_plugins.resident.settings import Settings

from .conftest import eventually

pytestmark = [
    pytest.mark.usefixtures("task_identity"),
    pytest.mark.skipif(sys.platform != "linux", reason="workers are for Linux"),
]

SETTINGS = Settings(memory_mb=4096)
RUN_CONFIG = {
    **RunConfig.defaults(),
    "task": "breast_cancer",
    "client": "supervised(local_epochs=2, batch_size=16)",
}


def context(*, partition: int = 0, num_partitions: int = 3, **run_config: Any) -> Context:
    node_config = {wire.PARTITION_ID: partition, wire.NUM_PARTITIONS: num_partitions}
    return Context(
        run_id=1,
        node_id=7,
        node_config=node_config,
        state=RecordDict(),
        run_config={**RUN_CONFIG, **run_config},
    )


def message(kind: str = "train", arrays: ArrayRecord | None = None, **config: Any) -> Message:
    records = {wire.CONFIG: ConfigRecord({wire.SCHEMA: 1, wire.SERVER_ROUND: 1, **config})}
    content = RecordDict({wire.ARRAYS: arrays, **records} if arrays is not None else dict(records))
    return Message(content, 7, kind)


def pid_of(node: ProcessId, settings: Settings = SETTINGS, asked: Context | None = None) -> int:
    """Ask something that no worker can do, which is quick, and return who has said so."""
    told = ask("nothing", message(), asked or context(), node=node, settings=settings)
    assert (told.header["status"], told.header["name"]) == ("error", "KeyError")
    return int(told.header["pid"])


def alive(pid: int) -> bool:
    return ProcessId.of(pid) is not None


def folders(runtime_folder: str) -> list[Path]:
    return list(Path(runtime_folder, "fl-plugins").iterdir())


def test_one_worker_serves_message_after_message_until_its_node_ends(
    node: ProcessId, node_process: "subprocess.Popen[bytes]", runtime_folder: str
) -> None:
    first = pid_of(node)
    assert first != os.getpid()
    assert pid_of(node) == first
    node_process.kill()
    eventually(lambda: not alive(first))
    eventually(lambda: not folders(runtime_folder))


def test_a_worker_that_was_killed_is_replaced(node: ProcessId) -> None:
    first = pid_of(node)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: not alive(first))
    second = pid_of(node)
    assert second != first
    assert pid_of(node) == second


def test_a_message_whose_worker_is_killed_meanwhile_is_served_by_a_fresh_one(node: ProcessId) -> None:
    first = pid_of(node)
    os.kill(first, signal.SIGSTOP)  # it will be asked, and never answer
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pid_of, node)
        time.sleep(0.3)
        assert not waiting.done()
        os.kill(first, signal.SIGKILL)
        assert waiting.result(timeout=60) != first


def test_many_at_once_start_one_worker(node: ProcessId) -> None:
    with ThreadPoolExecutor(8) as pool:
        pids = list(pool.map(lambda _: pid_of(node), range(8)))
    assert len(set(pids)) == 1


def test_a_worker_above_its_memory_ends_after_the_reply(node: ProcessId) -> None:
    small = Settings(memory_mb=1)
    first = pid_of(node, small)
    eventually(lambda: not alive(first))
    assert pid_of(node, small) != first


def test_a_worker_without_messages_ends(node: ProcessId) -> None:
    pid = pid_of(node, Settings(memory_mb=4096, idle_s=0.2))
    eventually(lambda: not alive(pid))


def test_another_configuration_of_the_node_has_another_worker(node: ProcessId) -> None:
    assert pid_of(node) != pid_of(node, asked=context(partition=1))


def test_other_code_is_at_another_address(node: ProcessId, tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()

    def where() -> address.Address:
        return address.address_of(node, node_id=7, node_config={}, path=[str(packages)])

    before = where()
    assert where() == before
    os.utime(packages, ns=(0, 1))  # as an installation does
    assert where() != before
    assert address.address_of(node, node_id=8, node_config={}, path=[str(packages)]) != where()


def test_folders_of_nodes_that_ended_are_removed(node: ProcessId, runtime_folder: str) -> None:
    stale = Path(runtime_folder, "fl-plugins", f"{node.pid}-{node.started - 1}-abc")
    stale.mkdir(parents=True)
    stale.parent.chmod(0o700)
    pid_of(node)
    assert [folder.name.split("-")[1] for folder in folders(runtime_folder)] == [str(node.started)]


@pytest.mark.parametrize("how", ["open", "link"])
def test_a_folder_that_others_may_use_is_refused(node: ProcessId, runtime_folder: str, how: str) -> None:
    base = Path(runtime_folder, "fl-plugins")
    if how == "open":
        base.mkdir()
        base.chmod(0o755)
    else:
        Path(runtime_folder, "elsewhere").mkdir(mode=0o700)
        base.symlink_to(Path(runtime_folder, "elsewhere"))
    with pytest.raises(PermissionError, match="mode 0700"):
        pid_of(node)


def test_the_worker_answers_no_foreign_user_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = socket.socketpair(socket.AF_UNIX)
    with mine:
        send(mine, Frame({"kind": "nothing", "path": sys.path}, message_to_bytes(message())))
        monkeypatch.setattr(protocol, "peer_credentials", lambda _: (1, os.getuid() + 1, 0))
        with theirs:
            worker.serve_one(theirs, {})
        with pytest.raises((ProtocolError, ConnectionResetError)):
            receive(mine)


def deployed(monkeypatch: pytest.MonkeyPatch, node: ProcessId) -> None:
    monkeypatch.setattr(client, "deployed_node", lambda: node)


def test_a_worker_that_does_not_start_costs_nothing_but_a_line(
    node: ProcessId, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deployed(monkeypatch, node)
    monkeypatch.setattr(client, "WORKER_MODULE", "fl_plugins.resident.no_such_module")
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    here = RecordDict({"here": ConfigRecord({"x": 1})})
    assert serve("train", message(), context(), lambda *_: here) is here
    assert "is not used for this message" in caplog.text


def test_a_node_that_wants_no_worker_has_none(
    node: ProcessId, monkeypatch: pytest.MonkeyPatch, runtime_folder: str
) -> None:
    deployed(monkeypatch, node)
    asked = context()
    asked.node_config["resident-worker"] = False
    here = RecordDict()
    assert serve("train", message(), asked, lambda *_: here) is here
    assert not Path(runtime_folder, "fl-plugins").exists()


@pytest.mark.parametrize(
    ("node_config", "error", "words"),
    [
        ({"resident-worker": "no"}, ConfigTypeError, "give true or false"),
        ({"resident-worker-memory-mb": 0}, ConfigError, "resident-worker-memory-mb=0"),
        ({"resident-worker-idle-s": "1h"}, ConfigTypeError, "give a number"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    node_config: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Settings.from_node_config(node_config)


def reply(kind: str, asked: Context, arrays: ArrayRecord) -> Message:
    handler: Callable[[Message, Context], Message] = getattr(client_app, kind)
    return handler(message(kind, arrays), asked)


def as_bytes(answer: Message) -> dict[str, Any]:
    """Return all that a reply says, to the last bit."""
    content = answer.content
    arrays = {
        name: {key: (array.dtype, array.shape, array.data) for key, array in record.items()}
        for name, record in content.array_records.items()
    }
    return {**arrays, **{name: dict(record) for name, record in content.metric_records.items()}}


def test_what_the_worker_returns_is_what_this_process_would(
    node: ProcessId, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.from_run_config(RUN_CONFIG)
    parameters = from_named(client_stack(config).trainer.init(seed=0))
    here = {kind: reply(kind, context(), parameters) for kind in ("train", "evaluate")}
    empty = context(partition=10_000, num_partitions=10_001)  # one example for some, none for this one
    refused_here = reply("train", empty, parameters)
    assert refused_here.has_error()

    deployed(monkeypatch, node)
    monkeypatch.setattr(client_app, "_here", lambda _: pytest.fail)  # which is what serving here would call
    for kind, expected in here.items():
        assert as_bytes(reply(kind, context(), parameters)) == as_bytes(expected)
    assert reply("train", empty, parameters).error.reason == refused_here.error.reason


def test_the_state_of_a_client_stays_with_its_process() -> None:
    from fl_plugins._flower import context_from_bytes, context_to_bytes

    told = context()
    told.state["secret"] = ConfigRecord({"x": 1})
    again = context_from_bytes(context_to_bytes(told))
    assert again == replace(told, state=RecordDict())
    assert told.state
